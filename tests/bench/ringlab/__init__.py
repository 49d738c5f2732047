"""Rings for the bench: engine processes of one machine, pinned, with delays between them.

`nodes.py` starts a ring, `delay.py` stands between two stages, `ask.py` is the client, `peer.py` is
llama.cpp itself, whole or over its own RPC (`rpc_server.py`).
"""
