#!/bin/sh
# Be a test machine: the first process in its own mount, process, UTS, IPC and cgroup namespaces
# makes its root file system out of layers and becomes its init. Started by machines.py as
#   boot.sh NAME LAYERS FOLDER INIT
# LAYERS are read only, topmost first, with colons between; what the machine writes goes to FOLDER.
set -eu

name=$1 layers=$2 folder=$3 init=$4
root=$folder/root

mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=$layers,upperdir=$folder/upper,workdir=$folder/work" "$root"
hostname "$name"
echo "$name" >"$root/etc/hostname"
echo "127.0.0.1 localhost $name" >"$root/etc/hosts"

# As in any container: the kernel's switches are this machine's alone where they are the network's.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind /proc/sys/net "$root/proc/sys/net"
if [ -e "$root/proc/sysrq-trigger" ]; then
    mount --bind "$root/proc/sysrq-trigger" "$root/proc/sysrq-trigger"
    mount -o remount,bind,ro "$root/proc/sysrq-trigger"
fi
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
for device in null zero full random urandom tty net/tun; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"

cd "$root"
mkdir -p mnt
pivot_root . mnt
# Modules, the clock and the kernel's log belong to the machine that this one is on.
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=covey \
    setpriv --bounding-set=-sys_module,-sys_time,-syslog,-mknod,-sys_rawio \
    sh -c 'umount -l /mnt && exec "$1" </dev/null >/run/console 2>&1' sh "$init"
