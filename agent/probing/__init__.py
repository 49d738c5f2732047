"""The shells around WireGuard's UDP port: what sends and hears the path engine's datagrams.

The decisions are elsewhere (agent/paths). Here are a raw socket that shares WireGuard's port, the
rendezvous that tells others where they are seen, the sockets and the rule of a birthday path, the
MSS clamp, and word of a changed underlay.
"""
