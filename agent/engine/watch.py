"""The second thread of a stage or a head: it pings and listens while the first one computes.

For `stage.py` and `pipeline.py`. Each stage is heard by both its neighbours: the successor cannot
tell while frames wait that it has not read, and words come back to the predecessor whatever goes
the other way. Whoever finds a neighbour lost says so both ways round the ring, so that the head
hears of it past a stage that computes.

| what happens | who notices, and by what |
|---|---|
| a stage's process dies | both neighbours: its connections close |
| it is frozen, or cut off | both neighbours: it pings neither of them (`silence.py`) |
| it lives, but takes no frame or gives none back | its predecessor, or the head: by time alone |
| this process itself stood still | itself, by its late turns: not held against others |
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.engine.frames import stage_name
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.silence import Known, Silence
from agent.errors import CoveyError, EngineError, PeerError

log = logging.getLogger(__name__)

# `Outlet.ping` counts on it.
_TURNS_PER_PING = 3
# A turn that comes later means that this process did not run.
_PUNCTUAL_S = 0.05
# With so much unread the predecessor may have no room for a ping: Linux begins with 64 KiB.
_FULL_BYTES = 32 << 10
_CLOSE_TIMEOUT_S = 5.0
# A process that is killed has told what it learned until then.
_TELL_S = 10.0


@dataclass(frozen=True)
class Heard:
    """What is known of links from before, by the neighbour's address, and who hears what is now."""

    known: Mapping[str, Known] = field(default_factory=dict)
    tell: Callable[[dict[str, Known]], None] = lambda _: None


NOTHING = Heard()


class Watch:
    """Watches over one stage's neighbours from `start` to `close`."""

    def __init__(
        self, member: Membership, inlet: Inlet, outlet: Outlet, heard: Heard = NOTHING
    ) -> None:
        now = time.monotonic()
        self._member = member
        self._inlet = inlet
        self._outlet = outlet
        self._turn_s = member.ping_s / _TURNS_PER_PING
        since = max(now, inlet.patient_until)
        bounds = member.least_s, member.silence_s, member.ping_s
        self._before = Silence(*bounds, since, heard.known.get(inlet.address))
        self._behind = Silence(*bounds, now, heard.known.get(outlet.address))
        self._heard = heard
        self._tells_at = now + _TELL_S
        self._arrived = inlet.arrived()[0]
        self._beats_at = now
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to ping and to listen."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; the connections may then be closed."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join(_CLOSE_TIMEOUT_S)
        os.close(self._stop)
        self._stop = -1
        self._tell_known()

    def tell(self, error: CoveyError) -> None:
        """Say both ways round the ring why it is broken, and where; from any thread."""
        own = self._member.stage
        match error:
            case Lost():
                stage, reason = error.stage, error.reason
            case PeerError():
                stage = self._inlet.stage
                reason = f"{stage_name(own)} failed: {error.message.rstrip('.')}"
            case _:
                stage, reason = own, f"{stage_name(own)} failed: {error.message.rstrip('.')}"
        self._outlet.fault(stage, reason)
        self._inlet.fault(stage, reason)

    def _run(self) -> None:
        try:
            self._watch()
            return
        except CoveyError as error:
            found = error
        except Exception as error:
            log.exception("the watch over the ring failed")
            found = EngineError(f"the watch over the ring failed: {error!r}.")
        log.info("the watch ends: %s", found.message)
        self.tell(found)
        # To a successor that lives a frame is finished, so that it can be told why it is the last.
        lives = isinstance(found, Lost) and found.stage != self._outlet.stage
        self._outlet.end(found, at_once=not lives)
        self._inlet.end(found)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(self._outlet, select.POLLIN)
        # Frames are for the other thread; the end of the connection is for both.
        poll.register(self._inlet, select.POLLRDHUP)
        inlet, outlet = self._inlet.fileno(), self._outlet.fileno()
        last = time.monotonic()
        while True:
            ready = {file for file, _ in poll.poll(1000 * self._turn_s)}
            now = time.monotonic()
            if self._stop in ready:
                return
            self._excuse(now - last - self._turn_s, now)
            last = now
            if outlet in ready:
                self._hear_successor(now)
            if inlet in ready:
                self._inlet.pump()
            self._hear_predecessor(now)
            if now >= self._beats_at:
                self._beats_at = now + self._member.ping_s - self._turn_s / 2
                self._inlet.ping()
            self._outlet.ping()
            self._judge(now)
            if now >= self._tells_at:
                self._tells_at = now + _TELL_S
                self._tell_known()

    def _tell_known(self) -> None:
        """Say what is known of both links; they may lead to the same neighbour."""
        found: dict[str, Known] = {}
        for neighbour, silence in ((self._inlet, self._before), (self._outlet, self._behind)):
            if (known := silence.known) is not None:
                other = found.get(neighbour.address)
                found[neighbour.address] = known.together(other) if other else known
        if found:
            self._heard.tell(found)

    def _excuse(self, late_s: float, now: float) -> None:
        if late_s > _PUNCTUAL_S:
            self._before.excuse(late_s, now)
            self._behind.excuse(late_s, now)

    def _hear_successor(self, now: float) -> None:
        try:
            if self._outlet.hear():
                self._behind.heard(now)
        except PeerError as error:
            raise Lost(self._outlet.stage, error.message.rstrip(".")) from None

    def _hear_predecessor(self, now: float) -> None:
        arrived, unread = self._inlet.arrived()
        if arrived != self._arrived:
            self._arrived = arrived
            self._before.heard(now)
        elif unread >= _FULL_BYTES:
            self._before.excuse(self._before.silent_s(now), now)

    def _judge(self, now: float) -> None:
        inlet, outlet = self._inlet, self._outlet
        # A successor that has never spoken is its own successor's business.
        for neighbour, silence, wanted in (
            (inlet, self._before, True), (outlet, self._behind, self._behind.met),
        ):  # fmt: skip
            silent_s = silence.silent_s(now)
            if wanted and silent_s > self._member.ping_s and silence.too_long(now, neighbour.rtt_s):
                reason = f"{neighbour.name} has been silent for {silent_s:.1f} s"
                raise Lost(neighbour.stage, reason)
