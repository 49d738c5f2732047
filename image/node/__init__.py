"""What runs on the appliance beside the agent.

`covey.toml` on the boot partition, which people write by hand: `filetext.py` (bytes to lines),
`statements.py` (lines to keys and values), `fields.py` (what each may be), `settings.py` (all
together), `scrub.py` (the file without its secrets), `kept.py` (those that are still needed),
`hostfiles.py` and `wifi.py` (what the services read).

Updates: `manifest.py` (what is signed), `release.py` (what the image says of itself, and whom it
trusts), `slots.py` (which of two versions boots), `slotblocks.py` and `envblock.py` (how that is
stored, so that GRUB reads it), `probation.py` (when a version has proved itself).

All of these are cores, and so are `screen.py` (what is shown) and `setupdns.py` (what the LAN is
told). Shells: `startup.py` at each start, `watching.py` while it runs, with `conditions.py`,
`announcing.py` and `trials.py`; `resetdone.py`, `slotstore.py`; and for updates `door.py` (lets
callers in), `updating.py` (does what one wants), `install.py` (writes a slot), `machine.py` (what
this appliance is); `asking.py` (asks the agent); `asagent.py` (as whom root's commands run).
"""
