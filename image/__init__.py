"""The appliance: what a machine is that was flashed with Covey.

`node/` runs on the appliance, `boot/` is what GRUB runs, `disk/` puts files into a disk image.
Nothing here needs root.
"""
