# A guest whose interface leads out of the host: an address by DHCP, a page from out there, a page for there.

section net
insmod /bin/xen-netfront.ko
i=0
while [ ! -d /sys/class/net/eth0 ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
ip link set lo up
ip link set eth0 up
mkdir -p /www /tmp /etc
printf '#!/bin/sh\n[ "$1" = bound ] && ip addr add $ip/24 dev $interface && ip route add default via $router && echo "leased $ip via $router, mtu $mtu" && echo nameserver $dns > /etc/resolv.conf\nexit 0\n' > /bin/leased
chmod 755 /bin/leased
udhcpc -i eth0 -n -q -t 20 -s /bin/leased 2>/dev/null
nslookup -type=a host.test
port=$(sed 's/.*port=\([0-9]*\).*/\1/' /proc/cmdline)
wget -q -O /tmp/page http://10.0.2.2:$port/page && sha256sum /tmp/page | sed 's/ .*/ page/'
section serving
echo "from the guest" > /www/index.html
httpd -h /www
# The connection is closed by this side: it stays in TIME_WAIT.
i=0
until cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':0050 .* 06 ' || [ $i -ge 600 ]; do usleep 50000; i=$((i + 1)); done
section end
poweroff -f
