"""`agent doctor`: what is wrong with this node, found by looking, and what to do.

Cores: `facts.py` (what is known), `checks.py` (all checks) over `system.py`, `network.py`,
`compute.py`, `company.py` (who is there) and `firewall.py`. Shells: `look.py` and `links.py` gather
the facts, `watch.py` looks from within the agent, `bundle.py` writes the report.
"""
