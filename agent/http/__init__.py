"""The pages of an agent: HTTP on this machine, to be read only (`[http]` in agent.toml).

    hosts.py       whose Host header is answered (core)
    listener.py    the socket, and what holds for every page (shell)
    standing.py    /health and /metrics

The local API on the unix socket is another thing: it changes the node, and is its user's alone.
"""
