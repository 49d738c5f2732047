"""The appliance: what a machine is that was flashed with Covey.

`node/` runs on the appliance, `boot/` is what GRUB runs. Nothing here needs root.
"""
