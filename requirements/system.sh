#!/bin/sh
# Install the Debian packages that the tree's set-up, demo and tests need, if any is missing;
# with the argument "appliance" also those to build and boot the appliance's image, with "vm" those
# for all tests in virtual machines, with "ansible" those for the playbooks' tests, with "browser" the
# browser for the dashboard's, with "containers" those for compose.yaml's, with "shells" the shells that
# completion is for.
# As root it installs them; otherwise it says in one line what is missing.
set -eu

# program:package pairs; a package is only asked for when its program is not there.
NEEDED="cc:gcc c++:g++ make:make ip:iproute2 nft:nftables unshare:util-linux mount:mount curl:curl
sysctl:procps wireguard-go:wireguard-go wg:wireguard-tools tcpdump:tcpdump
miniupnpd:miniupnpd-nftables conntrack:conntrack sgdisk:gdisk mkfs.vfat:dosfstools mcopy:mtools"

PATH="$PATH:/usr/sbin:/sbin"
missing=""
if [ "${1:-}" = vm ] || [ "${1:-}" = appliance ]; then
    NEEDED="$NEEDED qemu-system-x86_64:qemu-system-x86 modprobe:kmod mksquashfs:squashfs-tools
grub-mkimage:grub-common"
    [ -d /usr/lib/grub/i386-pc ] || missing="$missing grub-pc-bin"
    [ -d /usr/lib/grub/x86_64-efi ] || missing="$missing grub-efi-amd64-bin"
fi
if [ "${1:-}" = shells ]; then
    NEEDED="$NEEDED zsh:zsh fish:fish"
fi
if [ "${1:-}" = ansible ]; then
    NEEDED="$NEEDED mmdebstrap:mmdebstrap ssh:openssh-client setpriv:util-linux"
fi
if [ "${1:-}" = browser ]; then
    NEEDED="$NEEDED chromium:chromium"
fi
if [ "${1:-}" = containers ]; then
    NEEDED="$NEEDED podman:podman crun:crun conmon:conmon iptables:iptables
catatonit:catatonit"
    for program in netavark aardvark-dns; do
        [ -x "/usr/lib/podman/$program" ] || missing="$missing $program"
    done
fi
if [ "${1:-}" = vm ]; then
    # What the cases run in the guest are programs of this machine.
    NEEDED="$NEEDED busybox:busybox"
    # And to log in to the appliance, and for both ends of its wifi.
    NEEDED="$NEEDED ssh:openssh-client wpa_supplicant:wpasupplicant hostapd:hostapd iw:iw"
    [ -d /usr/share/OVMF ] || missing="$missing ovmf"
    # And to build the appliance for aarch64, and to start that.
    NEEDED="$NEEDED aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-system-aarch64:qemu-system-arm"
    [ -d /usr/share/AAVMF ] || missing="$missing qemu-efi-aarch64"
    # A kernel with WireGuard, and with 9p, which Debian's kernels for clouds lack.
    kernel=""
    for modules in /lib/modules/*; do
        if [ -e "/boot/vmlinuz-${modules##*/}" ] &&
            [ -n "$(find "$modules" -name 'wireguard.ko*')" ] &&
            [ -n "$(find "$modules" -name '9p.ko*')" ]; then
            kernel=$modules
        fi
    done
    [ -n "$kernel" ] || missing="$missing linux-image-amd64"
fi
for pair in $NEEDED; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
# fastecdsa, which libp2p needs, has no wheel for every Python and is then compiled against GMP.
[ -e /usr/include/gmp.h ] || [ -n "$(find /usr/include -maxdepth 2 -name gmp.h 2>/dev/null)" ] ||
    missing="$missing libgmp-dev"
# Debian keeps the server's programs off the PATH.
[ -n "$(find /usr/lib/postgresql -maxdepth 3 -name postgres 2>/dev/null)" ] ||
    command -v postgres >/dev/null 2>&1 || missing="$missing postgresql"
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv python3-dev"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing on this machine:$missing. Install these packages (as root), then run make again." >&2
    exit 1
fi
echo "Installing$missing"
# Somebody else's installation, or the nightly one of the machine itself, is waited for.
apt-get -o DPkg::Lock::Timeout=600 update -qq
# shellcheck disable=SC2086 # a list of package names
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null
