#!/bin/busybox sh
# The first process: finds the slot that GRUB chose, mounts it read-only under memory, and goes on
# in it. If it cannot, the machine restarts, so that an update has a try less.
set -u
# By its path: the program looks for its own commands there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev

give_up() {
    echo "covey: $1; this machine restarts" >/dev/console
    $b sleep 5
    $b reboot -f
}

for module in /modules/*.ko; do
    # One for a device that is not there fails, or waits; neither says anything.
    $b insmod "$module" 2>/dev/null
done

slot=
for word in $($b cat /proc/cmdline); do
    case $word in covey.slot=*) slot=${word#*=} ;; esac
done

# The device of the partition with this name; disks on USB come late.
find_partition() {
    for file in /sys/class/block/*/uevent; do
        if $b grep -q "^PARTNAME=$1\$" "$file"; then
            $b sed -n 's/^DEVNAME=//p' "$file"
            return
        fi
    done
}

tries=0
while device=$(find_partition "slot-$slot"); [ -z "$device" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || give_up "no partition is named slot-$slot"
    $b usleep 100000
done

$b mount -t squashfs -o ro "/dev/$device" /low || give_up "slot $slot cannot be read"
# A machine without a clock begins in 1970, which is before any certificate.
made=$($b date -r /low/boot/vmlinuz +%s)
[ "$($b date +%s)" -gt "$made" ] || $b date -s "@$made" >/dev/null
# A quarter of the memory at most; what is written there is gone at the next start.
$b mount -t tmpfs -o mode=755,size=25% tmpfs /up
$b mkdir /up/upper /up/work
$b mount -t overlay -o lowerdir=/low,upperdir=/up/upper,workdir=/up/work root /new ||
    give_up "memory cannot be laid over slot $slot"
# Where it stays mounted, it also says which disk this is.
for folder in proc sys dev low; do
    $b mount --move /$folder /new/$folder
done
exec $b switch_root /new /sbin/init
