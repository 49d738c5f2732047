"""Discovery: who is in the mesh, where it can be reached, what it serves (design §5).

`node.Discovery` is what others use, with the records of `record.py`. What is called
a core does no I/O; `protocol` owns the UDP port's traffic, `walk` and `publish` its use.
"""
