"""A mesh for benches: agents with shares of the CPUs, and a LAN with delays and bandwidths.

`shares.py` has the control groups, `switch.py` the LAN's switch with delays, `nodes.py` the mesh;
`ask.py` is a client that is there before there is anything to ask.
"""
