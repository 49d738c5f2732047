"""Whether a gateway may begin to serve: keys are required wherever others can reach it.

A shell, used by `cli.py` before the loop starts, and by a reload.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence

from gateway.config import Config
from gateway.errors import UsageFault
from gateway.keys.database import StoreAway
from gateway.keys.store import Store

_log = logging.getLogger(__name__)


def keys_required(config: Config, sockets: Sequence[socket.socket]) -> bool:
    """Return what `require_keys` says, else whether a socket is open to more than this machine."""
    if config.require_keys is not None:
        return config.require_keys
    return any(_is_open(sock) for sock in sockets)


def check(config: Config, sockets: Sequence[socket.socket], store: Store, now: float) -> None:
    """Raise UsageFault for a gateway that others could reach and nobody could use, or everybody.

    A store that is away may have keys: then the gateway starts, and refuses until it knows.
    """
    required = keys_required(config, sockets)
    opened = [sock for sock in sockets if _is_open(sock)]
    if not required:
        if opened:
            _log.warning("everybody who reaches %s may use it: no key is required", _name(opened))
        return
    try:
        if store.there() and any(key.state(now) == "active" for key in store.all_keys()):
            return
    except StoreAway as error:
        _log.warning("whether there is a key is not known: %s", error.line())
        return
    if opened:
        raise UsageFault(
            f"{_name(opened)} can be reached by others, and {store.name} has no key that is valid",
            hint="Make one with `gateway keys create NAME`, listen on 127.0.0.1, or say "
            "--no-require-keys.",
        )
    _log.warning("keys are required, and %s has none that is valid", store.name)


def _name(sockets: Sequence[socket.socket]) -> str:
    return ", ".join("{}:{}".format(*sock.getsockname()[:2]) for sock in sockets)


def _is_open(sock: socket.socket) -> bool:
    """Return whether other machines may reach it; unix sockets have rights of their own."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
