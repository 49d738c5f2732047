"""Gossip measured: 30 control planes on loopback, in a star and in a random graph.

`rows` is what tests/bench/mesh.py asks for; `python tests/bench/gossip/planes.py` prints it alone.
"""

from gossip.planes import rows

__all__ = ["rows"]
