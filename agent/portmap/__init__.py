"""Port mapping: asks the home router to let datagrams from outside in to WireGuard's port.

`service.py` is the shell that the daemon starts. The cores: `natpmp.py`, `pcp.py` and `ssdp.py`
read and write the wire, `way.py` is one protocol at one gateway, `contest.py` keeps the best.
UPnP's HTTP is done by miniupnpc in a child process (`igd.py`, `igdchild.py`).
"""
