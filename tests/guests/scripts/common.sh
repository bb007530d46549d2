#!/bin/sh
# What every /init begins with. Sections of output begin with "=== NAME", so that a test finds its own.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
dmesg -n 1
section() { echo "=== $1"; }
uptime_ms() { awk '{ printf "%d", $1 * 1000 }' /proc/uptime; }
section init
