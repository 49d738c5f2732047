"""What the machine shows on its screen and its serial line. A core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WAITING = (
    "This machine is in no mesh yet. On a member run `agent invite`, write the ticket into",
    'covey.toml on the boot partition (any computer can read it) as ticket = "…", start again.',
)


@dataclass(frozen=True)
class View:
    """What is known: `addresses` of the LAN, `member` whether it is in a mesh.

    `mesh`, `overlay`, `roles`, `peers` and `wireguard` (its interface and kind) are the agent's,
    and empty while it does not answer; `joining` says that a ticket is there, `notes` what is wrong
    with the settings, `faults` with the machine or the agent, and `error` what the agent ended
    with. `conditions` are lines on the machine itself: temperature, wifi, ssh.
    """

    version: str
    slot: str
    name: str
    addresses: Sequence[str] = ()
    member: bool = False
    mesh: str = ""
    overlay: str = ""
    roles: Sequence[str] = ()
    peers: int = 0
    wireguard: str = ""
    joining: bool = False
    notes: Sequence[str] = ()
    faults: Sequence[str] = ()
    error: str = ""
    conditions: Sequence[str] = ()

    @property
    def wrong(self) -> list[str]:
        """All that is wrong, a line each."""
        ended = [self.error] if self.error and not self.mesh else []
        return [*self.notes, *ended, *self.faults]


def text(view: View) -> str:
    """Return the lines to show; the same view gives the same text."""
    lines = [
        f"Covey {view.version}, slot {view.slot}: {view.name}",
        f"  Addresses: {', '.join(view.addresses) or 'none; is a cable in?'}",
        *(f"  {line}" for line in view.conditions),
    ]
    if view.mesh:
        peers = f"{view.peers} peers" if view.peers != 1 else "1 peer"
        lines.append(f"  Mesh: {view.mesh}, {view.overlay}, {peers}")
        lines.append(f"  Role: {', '.join(view.roles) or 'none'}")
        lines.append(f"  WireGuard: {view.wireguard}")
    elif view.member:
        lines.append("  Mesh: a member; the agent does not answer yet")
    elif view.joining:
        lines.append("  Mesh: joining with the ticket of covey.toml")
    elif not view.notes:
        lines += [f"  {line}" for line in WAITING]
    if view.notes:
        lines.append("  What is wrong with covey.toml, of which nothing counts therefore:")
        lines += [f"    {note}" for note in view.notes]
    if view.error and not view.mesh:
        lines.append(f"  {view.error}")
    lines += [f"  {fault}" for fault in view.faults]
    return "\n".join(lines) + "\n"


def setup(view: View) -> str:
    """Return what `announcing.py` tells the LAN: a state, then what is wrong; "" for nothing.

    A member of a mesh is silent to others, but for a mistake in its settings.
    """
    if view.notes:
        state = "covey.toml has mistakes"
    elif view.member:
        return ""
    else:
        state = "joining" if view.joining else "waiting for a ticket"
    return "".join(f"{line}\n" for line in [state, *view.wrong])
