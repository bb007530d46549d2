# Files that are on the disk when their numbers are told, one after the other, until somebody stops it.

for module in crc16 crc32c_generic mbcache jbd2 ext4 xen-blkfront; do insmod /bin/$module.ko; done
i=0
while [ ! -b /dev/xvda ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
mkdir -p /disk
mount -t ext4 /dev/xvda /disk && echo mounted
read -r go
i=0
while true; do
    seq $i $((i + 3000)) | dd of=/disk/$((i % 97)) bs=4k conv=fsync 2>/dev/null && echo "<$i>"
    [ $((i % 3)) = 0 ] && rm -f /disk/scratch || seq 1 $((i * 7 % 9000)) > /disk/scratch
    i=$((i + 1))
done
