"""Where the agent keeps its state and its socket when nobody said otherwise. A core.

One rule for the agent's configuration and for the gateway, which looks for the same socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

SOCKET = "agent.sock"


def state_dir(environment: Mapping[str, str], *, root: bool, home: str) -> PurePath:
    """Return the default state directory: /var/lib/covey, or the user's own (XDG)."""
    if root:
        return PurePath("/var/lib/covey")
    base = environment.get("XDG_STATE_HOME") or str(PurePath(home) / ".local" / "state")
    return PurePath(base) / "covey"


def socket(
    named: str, named_state_dir: str, environment: Mapping[str, str], *, root: bool, home: str
) -> PurePath:
    """Return the socket: as named, else in the state directory if that was named, else by rule.

    The rule is /run/covey for root, and $XDG_RUNTIME_DIR or the state directory for others.
    """
    if named:
        return PurePath(named)
    if named_state_dir:
        return PurePath(named_state_dir) / SOCKET
    if root:
        return PurePath("/run/covey") / SOCKET
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return PurePath(runtime) / "covey" / SOCKET
    return state_dir(environment, root=root, home=home) / SOCKET
