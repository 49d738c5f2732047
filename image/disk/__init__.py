"""The appliance's disk image, put together from files without root, mounts or loop devices.

`gpt.py` is the partition table, `layout.py` what lies where, `write.py` puts it into a file,
`bootfiles.py` makes the boot partition that any computer can read.
"""
