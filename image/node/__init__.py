"""What runs on the appliance beside the agent.

`covey.toml` on the boot partition, which people write by hand: `filetext.py` (bytes to lines),
`statements.py` (lines to keys and values), `fields.py` (what each may be), `settings.py` (all
together), `scrub.py` (the file without its secrets).
"""
