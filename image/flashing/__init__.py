"""Writes the appliance's image to a disk: `image/flash`. Runs on a person's computer (Linux).

options.py    the command line, and what it sets
filled.py     covey.toml out of that; a core
source.py     the image's file: its hash, what is in it, its bytes with that covey.toml
targets.py    what would be overwritten, and why it may not be
writing.py    writes, and reads back
progress.py   how far it is; a core
"""
