"""Builds the appliance's disk image: `image/build`. Runs on the machine that builds, without root.

source.py                what a source of packages is
packages.py, debian.py   Debian's packages: which, from where; unpacked, no script of them runs
alpine/, keys/           Alpine's: the same, and verified here; the keys that they are signed with
wheels.py, foreign.py    Python's packages: for this machine's Python, or for another one
commands.py              busybox's commands
raspberrypi.py           what a Raspberry Pi reads before GRUB
tree.py                  the root file system, with what lies in image/root
modules.py, cpio.py, initramfs.py   what the kernel starts first
grubcore.py, grub.py     the boot loader, for BIOS and UEFI
assemble.py              all of it, into one file
signing.py, sign.py      updates out of what was built, and the keys for them: `image/sign`
oci.py                   or the root alone, as images for containers
programs.py              runs the programs that it takes
"""
