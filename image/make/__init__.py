"""Builds the appliance's disk image: `image/build`. Runs on the machine that builds, without root.

packages.py, debian.py   Debian's packages: which, from where; unpacked, no script of them runs
wheels.py                Python's packages
tree.py                  the root file system, with what lies in image/root
modules.py, cpio.py, initramfs.py   what the kernel starts first
grubcore.py, grub.py     the boot loader, for BIOS and UEFI
assemble.py              all of it, into one file
signing.py, sign.py      updates out of what was built, and the keys for them: `image/sign`
programs.py              runs the programs that it takes
"""
