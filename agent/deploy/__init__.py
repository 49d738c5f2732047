"""Deployments: what the operator asked for becomes a ring of engine processes on several nodes.

`messages.py` is what heads and stages say to each other over the control plane, `rings.py` the
head's side, `stages.py` the other nodes', `blobs.py` how a stage's file gets to its node.
"""
