"""The control plane: requests, gossip and links between members, over libp2p (design §6).

`ControlPlane` is the asyncio face. libp2p and trio live in one thread of their own and are imported
there, when it starts: importing this package costs neither.

Cores: frames, envelope, rpc, gossip, outbox, authors, gate, preamble, redial, setup, troubles.
On the asyncio side: host, life, publishing, bridge. In the thread: node, answers, topics, keeper,
links, listening, streams, sockets, swarm, lean.
"""

from agent.control.host import ControlPlane, Handler, Subscriber
from agent.control.life import Down
from agent.control.setup import Link

__all__ = ["ControlPlane", "Down", "Handler", "Link", "Subscriber"]
