"""What happens to the path under a TCP stream, and for how long the stream then stands still.

    with StreamLab(folder) as lab:
        gaps = [lab.measure(change) for change in CHANGES]
        lab.end()                                   # raises AssertionError if a byte was lost

Two members behind easy NATs, two more with public addresses that are rendezvous and relays. Used by
the lab's test and by `tests/bench/paths.py`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nat_agents import NatMesh
from nat_stream import Stream, expected

from agent.demo.natlab import NatLab

ONE, OTHER, PORT = "one", "other", 7100
LOSS, DOWN_UP = "a fifth of packets lost", "agent down, then up"
# The stream is watched so long after a change; several times what the engine's clocks take.
WATCH_S = 4.0
LOSS_PERCENT, LOSS_S = 20, 10.0
# For longer than this nothing is waited for; TCP's repetitions are 26 s apart by then.
LIMIT_S = 60.0
_ROUTE_LIMIT_S = 30.0
# With these the ACL lets the stream in.
_ACL = '[[rule]]\nfrom = "*"\nto = "*"\nports = ["tcp:7100-7199"]\naction = "allow"\n'


@dataclass(frozen=True)
class Change:
    """One change: `prepare` brings the state that it is made in, `undo` what was before.

    `bound_s`: what a test allows on a machine that does much else. TCP repeats what was lost 0.2,
    0.6, 1.4, 3.0, 6.2, 12.6, 25.4 s after the last packet that got through, so a path that is back
    1.5 s later makes a gap of 3, and one that is back after 3.1 s one of 6.
    """

    name: str
    make: Callable[[StreamLab], None]
    prepare: Callable[[StreamLab], None] = lambda lab: None
    undo: Callable[[StreamLab], None] = lambda lab: None
    watch_s: float = WATCH_S
    bound_s: float = 10.0


class StreamLab:
    """The internet, the members, and the stream."""

    def __init__(self, folder: Path) -> None:
        self.nat = NatLab()
        self.killed = ""  # the relay whose agent was ended last
        try:
            rendezvous = [self.nat.add(name, "public") for name in ("r1", "r2")]
            self.sites = {name: self.nat.add(name, "easy") for name in (ONE, OTHER)}
            self.mesh = NatMesh(folder, self.nat, rendezvous)
            self.mesh.acl.write_text(_ACL)
            self.mesh.join([ONE, OTHER], stay=True)
            _direct(self)
            self.stream = self._start(folder)
        except BaseException:
            self.nat.close()
            raise

    def __enter__(self) -> StreamLab:
        return self

    def __exit__(self, *_: object) -> None:
        self.mesh.__exit__()
        self.nat.close()

    def measure(self, change: Change) -> float:
        """Make a change and return the stream's longest pause, in seconds."""
        change.prepare(self)
        gap = _longest(self.stream, lambda: change.make(self), change.watch_s)
        change.undo(self)
        return gap

    def end(self) -> int:
        """End the stream; raises AssertionError unless all that was sent arrived. Return bytes."""
        sent, sent_digest, came, came_digest = self.stream.end()
        assert came == sent > 0, f"{sent} bytes were sent, {came} arrived"
        assert sent_digest == came_digest == expected(sent)
        return sent

    def peer(self, name: str = ONE, of: str = OTHER) -> dict[str, Any]:
        """Return what a member's agent says of another one."""
        peers = self.mesh.get(name, "/v1/peers")["peers"]
        found: dict[str, Any] = next((p for p in peers if p["name"] == of), {})
        return found

    def wait_route(self, *routes: str) -> None:
        """Wait until both reach each other in one of these ways; raises AssertionError."""
        deadline = time.monotonic() + _ROUTE_LIMIT_S
        while True:
            got = {self.peer(a, b).get("route") for a, b in ((ONE, OTHER), (OTHER, ONE))}
            if got <= set(routes):
                return
            assert time.monotonic() < deadline, f"reached {got}, not {routes}"
            time.sleep(0.1)

    def part(self, apart: bool) -> None:
        """Keep the two sites from each other, so that only a relay is left; or let them."""
        self.nat.part(self.sites[ONE], self.sites[OTHER], apart)

    def relay(self) -> str:
        """Return the name of the relay in use."""
        answer = self.mesh.ping(ONE, OTHER)
        assert answer["route"] == "relayed", answer
        return str(answer["relay"])

    def _start(self, folder: Path) -> Stream:
        ends = [self.sites[name].machines[0] for name in (ONE, OTHER)]
        address = self.mesh.get(OTHER, "/v1/status")["ipv6"]
        deadline = time.monotonic() + _ROUTE_LIMIT_S
        # The agents' ACLs take the file within a second.
        while self.mesh.ping(ONE, OTHER)["rtt_ms"] is None:
            assert time.monotonic() < deadline
        time.sleep(1.5)
        return Stream(folder, ends[0], ends[1], address, PORT)


class PlainTcp:
    """The same stream between two machines with public addresses, without Covey: the peer."""

    def __init__(self, nat: NatLab, folder: Path) -> None:
        self._nat = nat
        self._sites = [nat.add(name, "public") for name in ("plain1", "plain2")]
        one, other = (site.machines[0] for site in self._sites)
        self._stream = Stream(folder, one, other, other.address, PORT + 1)

    def loss(self) -> float:
        """Lose what a change of ours loses, for as long; return the longest pause, in seconds."""
        lossy = self._sites[1]
        gap = _longest(self._stream, lambda: self._nat.loss(lossy, LOSS_PERCENT), LOSS_S)
        self._nat.loss(lossy, 0)
        return gap

    def end(self) -> None:
        """End the stream."""
        self._stream.end()


def _longest(stream: Stream, make: Callable[[], None], watch_s: float) -> float:
    """Make a change under a stream that flows, and return its longest pause until it flows on."""
    stream.gap(time.monotonic(), 1.0, LIMIT_S)
    since = time.monotonic()
    make()
    return stream.gap(since, time.monotonic() - since + watch_s, LIMIT_S)


# -- the changes


def _relayed(lab: StreamLab) -> None:
    lab.part(True)
    lab.wait_route("relayed")


def _direct(lab: StreamLab) -> None:
    lab.part(False)
    lab.wait_route("punched")


def _kill_relay(lab: StreamLab) -> None:
    lab.killed = lab.relay()
    os.kill(lab.mesh.get(lab.killed, "/v1/status")["pid"], signal.SIGKILL)


def _revive(lab: StreamLab) -> None:
    lab.mesh.agent(lab.killed, "up")
    _direct(lab)


def _restart(*commands: str) -> Callable[[StreamLab], None]:
    def make(lab: StreamLab) -> None:
        for command in commands:
            lab.mesh.agent(OTHER, command)

    return make


CHANGES = (
    Change("direct to relay", lambda lab: lab.part(True), prepare=_direct),
    Change("relay to direct", _direct, prepare=_relayed),
    # Before the NATs change: a relay that was silent then is asked again 20 s later.
    Change("relay killed", _kill_relay, prepare=_relayed, undo=_revive),
    Change("port remap", lambda lab: lab.nat.remap(lab.sites[OTHER]), prepare=_direct),
    Change("address change", lambda lab: void(lab.nat.change_address(lab.sites[ONE])),
           prepare=_direct),
    Change(LOSS, lambda lab: lab.nat.loss(lab.sites[OTHER], LOSS_PERCENT), prepare=_direct,
           undo=lambda lab: lab.nat.loss(lab.sites[OTHER], 0), watch_s=LOSS_S),
    Change("agent restarted", _restart("restart"), prepare=_direct, undo=_direct, bound_s=60.0),
    # It imports for one to two seconds, and its interface is gone meanwhile.
    Change(DOWN_UP, _restart("down", "up"), prepare=_direct, undo=_direct,
           bound_s=60.0),
)  # fmt: skip


def void(_: object) -> None:
    """Take what somebody returns, and return nothing."""
