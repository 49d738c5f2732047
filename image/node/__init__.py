"""What runs on the appliance beside the agent. All of it are cores.

`covey.toml` on the boot partition, which people write by hand: `filetext.py` (bytes to lines),
`statements.py` (lines to keys and values), `fields.py` (what each may be), `settings.py` (all
together), `scrub.py` (the file without its secrets).

Updates: `manifest.py` (what is signed), `slots.py` (which of two versions boots), `slotblocks.py`
and `envblock.py` (how that is stored, so that GRUB reads it), `probation.py` (when a version has
proved itself).
"""
