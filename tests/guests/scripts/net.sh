# One of two guests on a switch: `net=server` gives the other its address, a page and what it sends back.

section net
insmod /bin/xen-netfront.ko
role=$(sed 's/.*net=\([a-z]*\).*/\1/' /proc/cmdline)
bytes=$(sed 's/.*bytes=\([0-9]*\).*/\1/' /proc/cmdline)
i=0
while [ ! -d /sys/class/net/eth0 ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
ip link set lo up
ip link set eth0 up
cat /sys/class/net/eth0/address
mkdir -p /www /var/lib/misc /tmp
make_data() { yes "$1 0123456789 abcdefghijklmnopqrstuvwxyz" | head -c $bytes; }

if [ $role = server ]; then
    ip addr add 10.0.0.1/24 dev eth0
    printf 'start 10.0.0.10\nend 10.0.0.20\ninterface eth0\nlease_file /tmp/leases\noption subnet 255.255.255.0\n' > /tmp/dhcpd.conf
    touch /tmp/leases
    udhcpd -f /tmp/dhcpd.conf &
    make_data page > /www/page
    sha256sum /www/page | sed 's/ .*/ page/'
    httpd -h /www
    section transfer
    nc -l -p 7000 > /tmp/up
    sha256sum /tmp/up | sed 's/ .*/ up/'
    nc -l -p 7001 > /dev/null
    section end
else
    printf '#!/bin/sh\n[ "$1" = bound ] && ip addr add $ip/24 dev $interface && echo "leased $ip"\nexit 0\n' > /bin/leased
    chmod 755 /bin/leased
    udhcpc -i eth0 -n -q -t 10 -s /bin/leased 2>/dev/null
    section transfer
    ping -c 3 -i 0.2 10.0.0.1 | grep -E 'seq|transmitted'
    wget -q -O /tmp/page http://10.0.0.1/page && sha256sum /tmp/page | sed 's/ .*/ page/'
    make_data up > /tmp/up
    sha256sum /tmp/up | sed 's/ .*/ up/'
    until nc 10.0.0.1 7000 < /tmp/up; do usleep 10000; done
    until echo over | nc 10.0.0.1 7001; do usleep 10000; done
    section end
    cat /proc/net/dev | grep eth0
    grep -A1 -E '^(Tcp|Ip):' /proc/net/snmp | grep -E '^(Tcp|Ip): [0-9]'
fi
poweroff -f
