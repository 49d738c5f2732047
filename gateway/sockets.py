"""The connections to replicas: how many, how long idle, and how it shows that one is dead.

A shell, used by `app.py`.
"""

from __future__ import annotations

import socket
from typing import Any

import aiohttp

# A head's machine that is switched off closes nothing: TCP's probes find out, while it is silent
# anyway. A path that is replaced costs some seconds, so 17 s are never a fault of the path.
PROBE_AFTER_S, PROBE_EACH_S, PROBES = 5, 3, 4
# Shorter than any server keeps an idle connection, so that none is used as it is being closed.
IDLE_S = 15.0


def connector() -> aiohttp.TCPConnector:
    """Return what makes the connections to replicas."""
    # The router's choice bounds the connections to a replica, not the connector.
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=_socket)


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket whose peer is known to be gone although it said nothing."""
    made = socket.socket(*info[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EACH_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    lost_ms = 1000 * (PROBE_AFTER_S + PROBES * PROBE_EACH_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, lost_ms)
    return made
