"""The blind relay (design §7): forwards a pair's WireGuard datagrams, which it cannot read.

Cores: `messages.py` (what members ask), `allocation.py` (who gets which ports), `wire.py` and
`door.py` (how a side proves its place), `pairs.py`, `ruleset.py` (nftables), `client.py` (the side
that asks), `hello.py` (the tunnel's proof). Shells: `userspace.py` over `batch.py`, `forwarding.py`
(the kernel), the tunnel for blocked UDP, and `service.py`, which the daemon uses.
"""
