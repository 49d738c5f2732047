"""Who may reach which ports of whom over the overlay, and how nftables makes it so.

Cores: `ports.py`, `policy.py` (the file), `verdict.py` (why), `ruleset.py` (the same for the
kernel). Shells: `policyfile.py`, `firewall.py`, and `service.py`, the one that the daemon uses.
"""
