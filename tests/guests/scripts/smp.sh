# Two vCPUs. How it ends is on the command line: ending=reboot or ending=crash.

section cpus
nproc
grep -c ^processor /proc/cpuinfo
cat /sys/devices/system/cpu/online

section pinned
for cpu in 0 1; do
    mask=$((1 << cpu))
    taskset $mask sh -c 'i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done
        echo "cpu $(cut -d" " -f39 /proc/self/stat) counted $i"'
done

section parallel
work() { i=0; while [ $i -lt 40 ]; do seq 1 300 | sort -n | tail -n 1 >/tmp/$1; i=$((i + 1)); done; echo "$1 $i"; }
work a & work b &
wait
grep -E '^cpu[0-9]' /proc/stat

section migrate
sh -c 'i=0; while [ $i -lt 10 ]; do
    taskset -p 1 $$ >/dev/null; a=$(cut -d" " -f39 /proc/$$/stat)
    taskset -p 2 $$ >/dev/null; b=$(cut -d" " -f39 /proc/$$/stat)
    echo "$a$b"; i=$((i + 1)); done' | sort | uniq -c

section hotplug
echo 0 >/sys/devices/system/cpu/cpu1/online; echo "down $?"
cat /sys/devices/system/cpu/online
echo 1 >/sys/devices/system/cpu/cpu1/online; echo "up $?"
cat /sys/devices/system/cpu/online
taskset 2 sh -c 'echo "cpu $(cut -d" " -f39 /proc/self/stat)"'

section sleep
before=$(uptime_ms); taskset 2 sleep 1; after=$(uptime_ms); echo "slept $((after - before))"

section interrupts
cat /proc/interrupts
section dmesg
dmesg
section end
case "$(cat /proc/cmdline)" in
*ending=crash*) echo c >/proc/sysrq-trigger ;;
*) reboot -f ;;
esac
