#!/bin/busybox sh
# The guest's first process (boot.py): load the modules, take the host's files as root, run the
# script that covey.script= names, say its exit status on the console, and power off.
set -eu
bb=/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
finish() { $bb echo "covey-vm: $1"; $bb poweroff -f; }
trap 'finish "the guest could not be set up"' EXIT

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do $bb insmod "$module"; done
# What the kernel asks for when a module is wanted: that of the host's files, which has them all.
$bb mkdir -p /sbin
printf '#!%s sh\nexec %s chroot /root /sbin/modprobe "$@"\n' $bb $bb > /sbin/modprobe
$bb chmod 755 /sbin/modprobe
$bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /root
for folder in proc sys dev; do $bb mount -o bind "/$folder" "/root/$folder"; done
for folder in tmp run; do $bb mount -t tmpfs tmpfs "/root/$folder"; done
$bb mkdir -p /root/run/lock
$bb ip link set lo up

script=$($bb sed -n 's/.*covey\.script=\([^ ]*\).*/\1/p' /proc/cmdline)
status=0
$bb chroot /root /bin/sh "$script" </dev/null || status=$?
trap - EXIT
finish "status $status"
