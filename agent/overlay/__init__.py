"""The overlay: WireGuard devices, and which underlay endpoint to try for a peer (design §7).

Cores: reconcile.py, endpoints.py, uapi.py, alias.py and the types in device.py. Shells: kernel.py,
userspace.py with wireguardgo.py, afterwards.py, links.py, wgquick.py and shell.py. Only the daemon
uses `shell.Overlay`.
"""
