"""Fetch pieces of a file from several origins into a part file: the shell around `transfer.py`.

    fetch(part, origins)                      every piece that is missing
    fetch_tensors(manifest, names, …)         only these tensors of a model, checked by its manifest

Used by `pull.py`; `fetch_tensors` is for whoever needs a few layers of a model and no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.engine import splits
from agent.errors import PeerError
from agent.models import pieces as cutting
from agent.models.manifest import Manifest
from agent.models.origins import BrokenError, Origin, RefusedError, Stream
from agent.models.partfile import PartFile
from agent.models.pieces import Piece
from agent.models.runs import Run, Source
from agent.models.transfer import BACKOFF_S, Transfer

_log = logging.getLogger(__name__)

# Nothing to do and nothing to wait for does not happen; if it does, it is looked at again.
_IDLE_S = 0.5
# A source that sends just enough not to count as silent: slower than any modem, after a minute.
SLOW_AFTER_S, SLOW_BYTES_S = 60.0, 1000
_TELL_INTERVAL_S = 0.2


@dataclass(frozen=True)
class SourceState:
    """How a source does: bytes that came from it, bytes/s (None: not known), why it was left."""

    name: str
    bytes: int
    rate: float | None
    left: str


@dataclass(frozen=True)
class Progress:
    """How a fetch stands: bytes there, of all, bytes/s now, and its sources."""

    done: int
    total: int
    rate: float
    sources: tuple[SourceState, ...] = ()


Watch = Callable[[Progress], None]
Judge = Callable[[Piece, bytearray], None]
"""Called with a piece that is right by its hashes; raises RefusedError for one that cannot be."""


def ignore(_: Progress) -> None:
    """Watch nothing."""


def accept(_piece: Piece, _raw: bytearray) -> None:
    """Find nothing wrong with a piece beyond its hashes."""


async def fetch(
    part: PartFile, origins: Sequence[Origin], watch: Watch = ignore, judge: Judge = accept,
    backoff_s: float = BACKOFF_S,
) -> None:  # fmt: skip
    """Fetch the pieces that the part lacks; what came stays in it, whatever happens.

    Raises PeerError that names every origin and why it was left, EnvironmentFault for the disk.
    """
    await _Fetch(part, origins, watch, judge, backoff_s).run()


async def fetch_tensors(
    manifest: Manifest, names: Collection[str], origins: Sequence[Origin], target: Path,
    watch: Watch = ignore, backoff_s: float = BACKOFF_S,
) -> Path:  # fmt: skip
    """Fetch the header and these tensors of a model, each checked by the manifest, to `target`.

    `target` is a sparse file of the model's size with those bytes in their places: `GgufFile` reads
    its header, `cut.write_part` cuts a part out of it whose tensors are all there. Until all came
    it is TARGET.part, and goes on where it was left. A split model has a file for each of its own,
    called by the rule of `splits.py`; the first is returned. Raises as `fetch` does.
    """
    if unknown := set(names) - manifest.names():
        raise ValueError(f"the model has no {sorted(unknown)[0]}")
    plan = cutting.of_manifest(manifest, {*manifest.headers(), *names})
    with PartFile(target.with_name(f"{target.name}.part"), plan, manifest.sizes) as part:
        await fetch(part, origins, watch, backoff_s=backoff_s)
    targets = splits.files(target, len(part.files))
    for come, file in zip(part.files, targets, strict=True):
        come.rename(file)
    part.journal.unlink(missing_ok=True)
    return targets[0]


class _Fetch:
    def __init__(
        self, part: PartFile, origins: Sequence[Origin], watch: Watch, judge: Judge,
        backoff_s: float,
    ) -> None:  # fmt: skip
        self._part = part
        self._origins = {Source(origin.name, origin.tier): origin for origin in origins}
        self._transfer = Transfer(part.pieces, self._origins, part.done, backoff_s=backoff_s)
        self._watch = watch
        self._judge = judge
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        teller = asyncio.create_task(self._tell_on(), name="fetch progress")
        try:
            while not self._transfer.complete:
                await self._step()
        finally:
            for task in (teller, *self._tasks):
                task.cancel()
            await asyncio.wait([teller, *self._tasks])
        self._tell()

    async def _step(self) -> None:
        """Start what can be started, then wait for something to happen."""
        now = time.monotonic()
        while (run := self._transfer.next_run(now)) is not None:
            name = f"fetch {run.next} from {run.source.name}"
            self._tasks.add(asyncio.create_task(self._follow(run), name=name))
        if self._transfer.stuck:
            self._tell()
            raise PeerError(
                f"the model cannot be fetched: {self._transfer.why() or 'nobody has it'}",
                hint="What came is kept; pull it again when a source is there.",
            )
        wake = self._transfer.wake_at(now)
        wait_s = _IDLE_S if wake is None else max(0.0, wake - now)
        if not self._tasks:
            await asyncio.sleep(wait_s)
            return
        done, self._tasks = await asyncio.wait(
            self._tasks,
            timeout=wait_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in done:
            task.result()

    async def _follow(self, run: Run) -> None:
        """Fetch a run with one request."""
        transfer, source = self._transfer, run.source
        try:
            await self._fetch(run)
        except RefusedError as error:
            _log.warning("fetch source=%s left: %s", source.name, error)
            transfer.leave(source, str(error))
        except BrokenError as error:
            _log.info("fetch source=%s failed: %s", source.name, error)
            transfer.broke(run, str(error), time.monotonic(), error.rest_s)
        finally:
            transfer.end(run)

    async def _fetch(self, run: Run) -> None:
        transfer, pieces = self._transfer, self._transfer.pieces
        index = transfer.next_piece(run, time.monotonic())
        if index is None:
            return
        last = max(index, run.stop - 1)
        origin = self._origins[run.source]
        async with origin.open(pieces[index].start, pieces[last].end) as stream:
            if stream.sequential:
                transfer.make_sequential(run)
            while index is not None and index <= (len(pieces) if stream.sequential else last):
                raw = await self._read(run, pieces[index], stream)
                if raw is None:
                    return  # another source was faster
                why = await asyncio.to_thread(cutting.wrong, pieces[index], raw)
                if why:
                    _log.warning("fetch source=%s piece=%d wrong: %s", run.source.name, index, why)
                    transfer.rejected(run, why, time.monotonic())
                    return
                self._judge(pieces[index], raw)
                await asyncio.to_thread(self._part.write, index, raw)
                transfer.accepted(run)
                index = transfer.next_piece(run, time.monotonic())

    async def _read(self, run: Run, piece: Piece, stream: Stream) -> bytearray | None:
        """Read a piece; None once it came from elsewhere."""
        while stream.at < piece.start:
            await stream.chunk(piece.start - stream.at)
        raw = bytearray()
        began = time.monotonic()
        while len(raw) < piece.size:
            chunk = await stream.chunk(piece.size - len(raw))
            raw += chunk
            now = time.monotonic()
            if not self._transfer.received(run, len(chunk), now):
                return None
            if now - began > SLOW_AFTER_S and len(raw) < SLOW_BYTES_S * (now - began):
                raise BrokenError(f"it sends less than {SLOW_BYTES_S} bytes/s")
        return raw

    async def _tell_on(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(_TELL_INTERVAL_S)

    def _tell(self) -> None:
        transfer = self._transfer
        sources = tuple(SourceState(s.name, s.bytes, s.rate, s.left) for s in transfer.sources)
        self._watch(Progress(
            transfer.bytes_done + transfer.under_way, transfer.total,
            transfer.rate(time.monotonic()), sources,
        ))  # fmt: skip
