"""Import libp2p without what it brings for others.

`import libp2p` runs a package module that imports everything: DHT, bitswap, mDNS, relays, HTTP
clients; 60 MB. What we use needs 35. `prepare` is called before `node.py` is imported.

libp2p also makes resolvers of names that nothing here asks, and does not start where a machine
knows no nameserver (an address by hand, a LAN of its own). `prepare` has them made all the same.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from agent.hollow import hollow

# libp2p's modules import each other in circles; begun here, as its package module does, it works.
_FIRST = "libp2p.transport.quic.utils"


def prepare() -> None:
    """Make libp2p's submodules importable one by one; raises ImportError if it is not installed."""
    hollow("libp2p")
    _without_nameservers()
    importlib.import_module(_FIRST)


def _without_nameservers() -> None:
    from dns.resolver import BaseResolver, NoResolverConfiguration

    read = BaseResolver.read_resolv_conf
    if read.__module__ == __name__:
        return

    def read_if_any(self: BaseResolver, f: Any) -> None:
        with contextlib.suppress(NoResolverConfiguration):
            read(self, f)

    BaseResolver.read_resolv_conf = read_if_any  # type: ignore[method-assign]
