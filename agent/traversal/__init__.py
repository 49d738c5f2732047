"""NAT traversal at work: gives the path engine (agent/paths) its sockets, its signals and its time.

Shells: `service.py`, which the daemon uses, `carrier.py` (signals), `relayuse.py` (relays),
`birthdays.py` (birthday sockets and their rules), `surroundings.py` (this machine's addresses).
A core: `relayticket.py`.
"""
