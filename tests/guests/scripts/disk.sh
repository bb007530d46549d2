# A root's worth of work on a disk: read what is there, write, read it back from the disk, leave it clean.

section disk
for module in crc16 crc32c_generic mbcache jbd2 ext4 xen-blkfront; do insmod /bin/$module.ko; done
i=0
while [ ! -b /dev/xvda ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
cat /sys/block/xvda/size
mkdir -p /disk
mount -t ext4 /dev/xvda /disk && echo mounted
cat /disk/greeting
ls /disk
cat /disk/written 2>/dev/null

section write
[ "$(cat /sys/block/xvda/ro)" = 1 ] || {
    seq 1 30000 > /disk/numbers
    uname -r > /disk/written
    mkdir /disk/folder
    i=0
    while [ $i -lt 40 ]; do echo $i > /disk/folder/$i; i=$((i + 1)); done
    rm /disk/folder/7
    sync
}
echo 3 > /proc/sys/vm/drop_caches
sha256sum /disk/numbers
fstrim /disk 2>/dev/null && echo trimmed
umount /disk && echo unmounted
dd if=/dev/xvda of=/dev/null bs=64k count=64 2>&1 | tail -n 1 | cut -d, -f1
poweroff -f
