# One boot that a test looks at from many sides: processes, pipes, /proc, signals, time, 32-bit programs.

section storm
i=0
while [ $i -lt 120 ]; do true & i=$((i + 1)); done
wait
echo "background $i"
i=0
while [ $i -lt 120 ]; do /bin/true && i=$((i + 1)); done
echo "foreground $i"
i=0
while [ $i -lt 60 ]; do (exit 3); [ $? = 3 ] && i=$((i + 1)); done
echo "subshells $i"

section pipes
seq 1 2000 | awk '{ s += $1 } END { print "sum", s }'
yes | head -c 1000000 | wc -c
seq 1 5000 | sort -rn | head -n 1
seq 1 3000 | sha256sum
seq 1 3000 | tee /tmp/a | cat | cat | cat | sha256sum
dd if=/dev/zero bs=64k count=32 2>/dev/null | sha256sum

section proc
cat /proc/version
grep -E '^(MemTotal|MemFree):' /proc/meminfo
grep -c . /proc/self/maps
ls /proc/self/fd | wc -l
cat /proc/cmdline
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
date -u +%Y

section signals
sh -c 'trap "echo caught USR1" USR1; kill -USR1 $$; echo after'
sleep 100 & kill $!; wait $!; echo "TERM $?"
sleep 100 & kill -9 $!; wait $!; echo "KILL $?"
sh -c 'kill -SEGV $$'; echo "SEGV $?"
timeout 1 sleep 100; echo "timeout $?"
sh -c 'trap "echo parent heard; exit 5" USR2; (usleep 50000; kill -USR2 $$) & while :; do :; done'; echo "busy $?"
sleep 100 & child=$!; kill -STOP $child; sleep 1; grep State: /proc/$child/status; kill -CONT $child; sleep 1
grep State: /proc/$child/status; kill $child; wait $child; echo "continued $?"
yes 2>/dev/null | head -n 1

section sleep
before=$(uptime_ms); sleep 2; after=$(uptime_ms); echo "slept $((after - before))"
before=$(uptime_ms); i=0; while [ $i -lt 20 ]; do usleep 10000; i=$((i + 1)); done; after=$(uptime_ms)
echo "naps $((after - before))"

section i386
busybox32 uname -m
seq 1 3000 | busybox32 sha256sum
busybox32 ash -c 'i=0; while [ $i -lt 40 ]; do (exit 4); [ $? = 4 ] && i=$((i + 1)); done; echo "subshells $i"'
busybox32 ash -c 'trap "echo caught USR1" USR1; kill -USR1 $$; echo after'
busybox32 sleep 100 & kill $!; wait $!; echo "TERM $?"
busybox32 yes 2>/dev/null | busybox32 head -c 100000 | wc -c

section probe64
probe64
section probe32
probe32

section hypervisor
cd /sys/hypervisor
for file in type uuid version/major version/minor version/extra properties/capabilities properties/changeset \
    properties/features properties/pagesize properties/virtual_start compilation/compiler; do
    echo "$file $(cat $file)"
done
cd /

section interrupts
cat /proc/interrupts

section dmesg
dmesg
section end
sync
poweroff -f
