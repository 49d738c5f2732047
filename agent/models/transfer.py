"""Which source sends which piece of a file, and what becomes of one that fails. A core.

`fetch.py` asks for runs of pieces (`next_run`), walks each with `next_piece`, and says what came
of it. Sources of a lower tier (members) come first; those of the next (an https URL) are asked
once all of the lower have been left.

| what a source does                 | what follows                                              |
|------------------------------------|-----------------------------------------------------------|
| sends a piece that is right        | it counts; failures before it are forgotten               |
| breaks off, stalls, answers 5xx    | it rests 1, 2 s …; left at the third failure in a row     |
| sends a piece that is wrong        | the same, and left at the third wrong one in all          |
| refuses, has another file by now   | left at once                                              |
| ignores ranges                     | one request at a time, from the first piece that is missing |
| is slow                            | gets short runs; who is idle takes the rest of them, at    |
|                                    | the end even a piece that it has begun                    |

What is left is named with its reason, and never asked again. Every failure is counted and every
success is a piece, so it ends: complete, or stuck with nobody to ask. Times are seconds of any
clock that only grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.models.pieces import Piece
from agent.models.runs import RATE_WINDOW_S, Run, Source, Speed

ATTEMPTS = 3
BACKOFF_S = 1.0
# What a server may ask for with Retry-After; more than this is as good as a refusal.
MAX_REST_S = 60.0
# Two requests at once hide the time that a source takes to answer the next one.
SLOTS = 2
# A run is as much as a source sends in so long: few requests, and little to take over from it.
RUN_S = 8.0
MAX_RUN_PIECES = 32
# A piece that another source has begun is fetched twice only where that is so much sooner.
_SOONER = 2.0
# How soon to look again whether somebody idle can help.
_LOOK_AGAIN_S = 0.5


class Transfer:
    """The pieces of one file, and the sources that have them."""

    def __init__(
        self, pieces: Sequence[Piece], sources: Iterable[Source], done: Iterable[int] = (), *,
        backoff_s: float = BACKOFF_S,
    ) -> None:  # fmt: skip
        """`done` are the numbers of the pieces that are there already.

        `backoff_s` is how long a source rests after its first failure.
        """
        self._backoff_s = backoff_s
        self.pieces = pieces
        self.sources = tuple(sources)
        self._done = bytearray(len(pieces))
        for index in done:
            self._done[index] = 1
        self._missing = len(pieces) - sum(self._done)
        self._held = bytearray(len(pieces))  # by a run, begun or not
        self._runs: list[Run] = []
        self._speed = Speed()
        self.total = sum(piece.size for piece in pieces)
        self.bytes_done = sum(p.size for p, d in zip(pieces, self._done, strict=True) if d)

    # ------------------------------------------------------------------ how it stands

    @property
    def complete(self) -> bool:
        """Whether every piece is there."""
        return not self._missing

    @property
    def stuck(self) -> bool:
        """Whether pieces are missing and nobody is left to ask."""
        return not self.complete and not self._runs and all(s.left for s in self.sources)

    @property
    def under_way(self) -> int:
        """Bytes that came of pieces which are not complete yet."""
        got: dict[int, int] = {}
        for run in self._runs:
            if run.current is not None and not self._done[run.current]:
                got[run.current] = max(run.got, got.get(run.current, 0))
        return sum(got.values())

    def rate(self, now: float) -> float:
        """Return the bytes/s of all sources together, over the last seconds."""
        return self._speed.rate(now)

    def why(self) -> str:
        """Return each source that was left, with its reason, as one line."""
        return "; ".join(f"{s.name}: {s.left}" for s in self.sources if s.left)

    def wake_at(self, now: float) -> float | None:
        """Return when to ask `next_run` again if nothing happens; None: only something helps."""
        ready = [s for s in self.sources if not s.left and s.running < self._slots(s)]
        resting = [s.rests_until for s in ready if s.rests_until > now]
        idle = [now + _LOOK_AGAIN_S] if len(resting) < len(ready) and self._runs else []
        return min([*resting, *idle], default=None)

    # ------------------------------------------------------------------ what to do

    def next_run(self, now: float) -> Run | None:
        """Return what to fetch from whom, if there is something for somebody idle."""
        usable = [s for s in self.sources if not s.left]
        if not usable or self.complete:
            return None
        tier = min(s.tier for s in usable)
        ready = [
            s for s in usable
            if s.tier == tier and s.rests_until <= now and s.running < self._slots(s)
        ]  # fmt: skip
        for source in sorted(ready, key=lambda s: (s.running, -(s.rate or float("inf")))):
            run = self._fresh(source, len(ready), now) or self._taken(source, now)
            if run is not None:
                source.begin(now)
                self._runs.append(run)
                return run
        return None

    def next_piece(self, run: Run, now: float) -> int | None:
        """Return the next piece of a run, or None where it ends."""
        run.current = None
        if run.over or run.source.left:
            return None
        while run.next < run.stop:
            index = run.next
            run.next += 1
            if self._done[index] or (run.source.sequential and self._held[index]):
                if not run.source.sequential:
                    self._held[index] = 0
                continue
            run.current, run.piece_began, run.got = index, now, 0
            self._held[index] = 1
            return index
        return None

    # ------------------------------------------------------------------ what came of it

    def received(self, run: Run, count: int, now: float) -> bool:
        """Count bytes of the current piece; False once another source has sent that piece."""
        run.got += count
        run.source.received(count, now)
        self._speed.add(count, now)
        return run.current is not None and not self._done[run.current]

    def accepted(self, run: Run) -> None:
        """The current piece was right, and is on the disk."""
        index = run.current
        if index is None:
            return
        run.current = None
        run.source.failures = 0
        self._held[index] = 0
        if not self._done[index]:
            self._done[index] = 1
            self._missing -= 1
            self.bytes_done += self.pieces[index].size

    def rejected(self, run: Run, why: str, now: float) -> None:
        """The current piece was wrong and is thrown away; the run is over."""
        source = run.source
        source.wrong += 1
        if source.wrong >= ATTEMPTS:
            self.leave(source, f"it sent wrong bytes {source.wrong} times, the last time {why}")
        self.broke(run, why, now)

    def broke(self, run: Run, why: str, now: float, rest_s: float = 0.0) -> None:
        """The request failed (`rest_s`: what the source asks to be spared); the run is over."""
        source = run.source
        self.end(run)
        if source.left or run.began < source.failed_at:
            return  # requests that ran together and broke together are one failure
        source.failures += 1
        source.failed_at = now
        if source.failures >= ATTEMPTS:
            self.leave(source, f"it failed {source.failures} times, the last time {why}")
        elif rest_s > MAX_REST_S:
            self.leave(source, f"it asks to be left alone for {rest_s:.0f} s: {why}")
        else:
            backoff_s: float = self._backoff_s * 2 ** (source.failures - 1)
            source.rests_until = now + max(rest_s, backoff_s)

    def leave(self, source: Source, why: str) -> None:
        """Ask this source no more."""
        if not source.left:
            source.left = why

    def end(self, run: Run) -> None:
        """The request is over; what it did not bring is free again. Harmless when done twice."""
        if run.over:
            return
        run.over = True
        run.source.running -= 1
        self._runs.remove(run)
        if run.current is not None:
            self._held[run.current] = 0
            run.current = None
        if not run.source.sequential:
            for index in range(run.next, run.stop):
                self._held[index] = 0
        for other in self._runs:  # a piece that two fetched is still held by the other
            if other.current is not None:
                self._held[other.current] = 1

    def make_sequential(self, run: Run) -> None:
        """The source ignores ranges: this request brings all that is free from here on."""
        source = run.source
        if not source.sequential:
            for index in range(run.next, run.stop):
                self._held[index] = 0
            for other in [r for r in self._runs if r.source is source and r is not run]:
                self.end(other)
            source.sequential = True
        run.stop = len(self.pieces)

    # ------------------------------------------------------------------ who gets what

    def _slots(self, source: Source) -> int:
        return 1 if source.sequential else SLOTS

    def _free(self, index: int) -> bool:
        return not (self._done[index] or self._held[index])

    def _fresh(self, source: Source, ready: int, now: float) -> Run | None:
        """Return a run of pieces that nobody has: as many as the source sends in RUN_S."""
        count = len(self.pieces)
        start = next((i for i in range(count) if self._free(i)), None)
        if start is None:
            return None
        if source.sequential:
            return Run(source, start, count, now)
        free = sum(self._free(i) for i in range(start, count))
        share = -(-free // max(1, ready))  # at the end everybody gets some
        rate = (source.rate or 0.0) / SLOTS
        wanted = int(rate * RUN_S / max(1, self.pieces[start].size))
        limit = max(1, min(wanted, share, MAX_RUN_PIECES))
        stop = start + 1
        while (
            stop < count
            and stop - start < limit
            and self._free(stop)
            and self.pieces[stop].start == self.pieces[stop - 1].end
        ):
            stop += 1
        for index in range(start, stop):
            self._held[index] = 1
        return Run(source, start, stop, now)

    def _taken(self, source: Source, now: float) -> Run | None:
        """Return a run taken from another source: what it has not begun, or its last piece."""
        if source.sequential:
            return None
        others = [r for r in self._runs if r.source is not source and not r.source.sequential]
        if rests := [r for r in others if r.stop > r.next]:
            slowest = max(rests, key=lambda r: self._left_s(r, now))
            middle = (slowest.next + slowest.stop) // 2
            taken = Run(source, middle, slowest.stop, now)
            slowest.stop = middle
            return taken
        for run in [r for r in self._runs if r.source is not source]:
            index = run.current
            if index is None or self._done[index]:
                continue  # the run does not know yet that another was faster
            if not source.rate or self._copies(index) > 1:
                continue
            if self._left_s(run, now) > _SOONER * self.pieces[index].size / source.rate:
                return Run(source, index, index + 1, now)
        return None

    def _copies(self, index: int) -> int:
        """Count who fetches a piece, or is about to: a copy has not begun at first."""
        return sum(r.current == index or r.next == index < r.stop for r in self._runs)

    def _left_s(self, run: Run, now: float) -> float:
        """Estimate how long a run still takes; what has just begun is believed to go well."""
        left = sum(self.pieces[i].size for i in range(run.next, run.stop))
        rate = (run.source.rate or 0.0) / max(1, run.source.running)
        if run.current is not None:
            left += self.pieces[run.current].size - run.got
            elapsed = now - run.piece_began
            if elapsed > RATE_WINDOW_S:
                now_rate = run.got / elapsed
                rate = min(rate, now_rate) if rate else now_rate
            elif not rate:
                return 0.0
        return left / max(rate, 1.0)
