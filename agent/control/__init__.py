"""The control plane: authenticated request and reply between nodes, over libp2p (design §6).

`ControlPlane` is the asyncio face. libp2p and trio live in one thread of their own and are imported
there, when it starts: importing this package costs neither.
"""

from agent.control.host import ControlPlane

__all__ = ["ControlPlane"]
