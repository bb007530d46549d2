# What the kernel says of its own symbols, and a crash with a stack of its own.

section kallsyms
cut -d ' ' -f 1,3 /proc/kallsyms | sha256sum
wc -l < /proc/kallsyms

section crash
echo 1 > /proc/sys/kernel/sysrq
echo c > /proc/sysrq-trigger
