"""The appliance: what a machine is that was flashed with Covey.

`node/` runs on the appliance, with what lies in `root/`; `boot/` is what GRUB runs. `make/` builds
the image, and `disk/` puts files into it. `containers/` is for the same root as a container.
Nothing here needs root.
"""
