"""Presence: which members are there now, how they do, and to whom this node keeps links.

`service.Presence` is what the daemon uses. `liveness` and `links` decide, `report` says what nodes
tell each other; none of them does I/O.
"""
