"""A whole mesh on one machine: private namespaces, nodes on subnets of their own behind a router.

`sandbox.py` makes the private namespaces, `netlab.py` the network in them, `run.py` is the demo.
The lab tests use the first two. Nothing here is part of a node.
"""
