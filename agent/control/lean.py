"""Import libp2p without what it brings for others.

`import libp2p` runs a package module that imports everything: DHT, bitswap, mDNS, relays, HTTP
clients; 60 MB. What we use needs 35. So `prepare` puts an empty package in its place, through which
Python finds the same submodules. It is called in the control plane's thread, before `node.py` is
imported; where libp2p has been imported whole, it does not do that.

libp2p also makes resolvers of names that nothing here asks, and does not start where a machine
knows no nameserver (an address by hand, a LAN of its own). `prepare` has them made all the same.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGE = "libp2p"
# libp2p's modules import each other in circles; begun here, as its package module does, it works.
_FIRST = "libp2p.transport.quic.utils"


def prepare() -> None:
    """Make libp2p's submodules importable one by one; raises ImportError if it is not installed."""
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
        package = ModuleType(_PACKAGE, spec.name)
        package.__spec__ = spec
        package.__path__ = list(spec.submodule_search_locations)
        package.__file__ = spec.origin
        sys.modules[_PACKAGE] = package
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
