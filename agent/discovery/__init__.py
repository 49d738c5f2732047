"""Discovery: who is in the mesh, where it can be reached, what it serves (design §5).

`node.Discovery` is what others use, with the records of `record.py`. `seal`, `record`, `store`,
`messages`, `routing` and `lookup` do no I/O; `protocol` owns the UDP socket's traffic.
"""
