"""What the path engine wants done. A core: types only; the shell takes them by `engine.take()`."""

from __future__ import annotations

import msgspec

from agent.identity.keys import NodeId
from agent.paths.candidates import PathClass
from agent.paths.messages import Place, Probe, Signal


class _Output(msgspec.Struct, frozen=True):
    peer: NodeId


class SendProbe(_Output, frozen=True):
    """Seal it and send it there, from `local_port`; 0 is WireGuard's own port."""

    place: Place
    probe: Probe
    local_port: int = 0


class SendSignal(_Output, frozen=True):
    """Seal it and have the control plane carry it.

    `doubtful`: packets to the peer are lost just now, and perhaps those of its link as well.
    `unheard`: nothing was heard of the peer here yet, so that it may not be there at all.
    """

    signal: Signal
    doubtful: bool = False
    unheard: bool = False


class SetEndpoint(_Output, frozen=True):
    """Give WireGuard this endpoint for the peer; `relay` names the relay whose place it is."""

    place: Place
    relay: NodeId | None = None


class RenewSession(_Output, frozen=True):
    """Have WireGuard forget the session with the peer, and begin another.

    The peer's WireGuard has lost its side of it, and ours would notice after 15 s.
    """


class HoldEndpoint(_Output, frozen=True):
    """For a moment, what comes from `old` to WireGuard's port must not move its endpoint there.

    WireGuard takes for the endpoint whatever its last packet came from. Two ends that move to a new
    path while packets flow pull each other back to the old one, for as long as they flow: what is
    under way, and what the other still sends there. The shell rewrites the source of such packets
    to `new` (nftables, without conntrack), or drops them where it cannot.
    """

    old: Place
    new: Place


class ReleaseEndpoint(_Output, frozen=True):
    """Undo that."""

    old: Place


class OpenRelay(_Output, frozen=True):
    """Get a place on a relay for the pair, and report `relay_opened` or `relay_failed`.

    `ticket` None: make an allocation, in place of any that the pair has there. Else join the one
    that the peer made. `tunnel`: no UDP gets through here, go by WebSocket; the place to report is
    then the tunnel's end on this machine.
    """

    relay: NodeId
    tunnel: bool = False
    ticket: bytes | None = None


class CloseRelay(_Output, frozen=True):
    """The place on that relay is not used any more."""

    relay: NodeId


class StartBirthday(_Output, frozen=True):
    """Open `sockets` UDP sockets and send a `Ping(answer=False)` through each to `place`.

    Report what they hear by `birthday_received`.
    """

    place: Place
    sockets: int


class StopBirthday(_Output, frozen=True):
    """Close the sockets of the attempt, the one of an installed SNAT rule included."""


class AddSnat(_Output, frozen=True):
    """What WireGuard's port sends to `place` has to leave from `local_port`."""

    place: Place
    local_port: int


class RemoveSnat(_Output, frozen=True):
    """Undo that."""

    place: Place
    local_port: int


class MtuFound(_Output, frozen=True):
    """The largest packet that fits through the tunnel to this peer, in bytes."""

    mtu: int
    fragmented: bool = False
    """Even `mtu` only arrives in fragments: the path is narrower than IPv6 allows."""


class PathView(msgspec.Struct, frozen=True):
    """How a peer is reached: `path_class` None is not at all. `why` is a sentence; "" if direct.

    `jitter_s` is the RTT's mean deviation, `loss` the share of pings that were
    lost, or their answers.
    """

    path_class: PathClass | None = None
    place: Place | None = None
    relay: NodeId | None = None
    rtt_s: float | None = None
    since: float = 0.0
    why: str = ""
    jitter_s: float = 0.0
    loss: float = 0.0

    @property
    def direct(self) -> bool:
        """Whether packets go to the peer without a relay."""
        return self.path_class is not None and self.path_class is not PathClass.RELAYED


class PathChanged(_Output, frozen=True):
    """The peer is reached in another way now; `reason` is a phrase."""

    old: PathView
    new: PathView
    reason: str


Output = (
    SendProbe
    | SendSignal
    | SetEndpoint
    | RenewSession
    | HoldEndpoint
    | ReleaseEndpoint
    | OpenRelay
    | CloseRelay
    | StartBirthday
    | StopBirthday
    | AddSnat
    | RemoveSnat
    | MtuFound
    | PathChanged
)
