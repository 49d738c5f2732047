"""One source of all files of a split model: an origin for each, read as if they lay in a row.

What asks for bytes [start, end) need not know that there are several files. Used by `pull.py` and
`layers.py`, for models in one file too, which have just their one origin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from agent.models.manifest import Manifest, starts_of
from agent.models.mesh import Holder
from agent.models.origins import BrokenError, HttpOrigin, Origin, RefusedError, Stream, Tag
from agent.models.wanted import Networks


def joined(origins: Sequence[Origin], sizes: Sequence[int]) -> Origin:
    """Return one origin for files of these sizes (bytes), of which each has its own."""
    return origins[0] if len(origins) == 1 else JoinedOrigin(origins, sizes)


def members(
    session: aiohttp.ClientSession, manifest: Manifest, holders: Sequence[Holder],
    networks: Networks,
) -> list[Origin]:  # fmt: skip
    """Return the origins of a model that these members have."""
    sizes = manifest.sizes

    def of(holder: Holder) -> Origin:
        ends = [f"/{number}" for number in range(1, len(sizes) + 1)] if len(sizes) > 1 else [""]
        files = [
            HttpOrigin(
                session, f"{holder.url}/file{end}", networks=networks, tier=0, name=holder.member,
                tag=Tag(size),
            )
            for end, size in zip(ends, sizes, strict=True)
        ]  # fmt: skip
        return joined(files, sizes)

    return [of(holder) for holder in holders]


class JoinedOrigin:
    """The files of a split model at one source, in order; what fails says of which file it is."""

    def __init__(self, origins: Sequence[Origin], sizes: Sequence[int]) -> None:
        self.name = origins[0].name
        self.tier = origins[0].tier
        self._origins = origins
        self._starts = starts_of(sizes)
        self._ends = [start + size for start, size in zip(self._starts, sizes, strict=True)]

    @asynccontextmanager
    async def open(self, start: int, end: int) -> AsyncIterator[Stream]:
        """Open bytes [start, end), or all from the file of `start` on where ranges are ignored."""
        reading = _Reading(self._origins, self._starts, self._ends, end)
        try:
            async with reading.stack:
                first = await reading.begin(start)
                if first.sequential:
                    reading.end = self._ends[-1]
                at = self._starts[reading.number] + first.at
                yield Stream(at, reading.chunk, sequential=first.sequential)
        except BrokenError as error:
            raise BrokenError(f"{reading.file}: {error}", error.rest_s) from None
        except RefusedError as error:
            raise RefusedError(f"{reading.file}: {error}") from None


class _Reading:
    """Bytes up to `end`, out of one file after the other."""

    def __init__(
        self, origins: Sequence[Origin], starts: Sequence[int], ends: Sequence[int], end: int
    ) -> None:
        self.stack = AsyncExitStack()
        self.number = 0
        self.end = end
        self._origins = origins
        self._starts = starts
        self._ends = ends
        self._stream: Stream | None = None

    @property
    def file(self) -> str:
        return f"file {self.number + 1} of {len(self._origins)}"

    async def begin(self, at: int) -> Stream:
        """Open the file in which byte `at` lies, from there on."""
        if at >= self._ends[-1]:
            raise RefusedError(f"its files have {self._ends[-1]} bytes in all")
        while at >= self._ends[self.number]:
            self.number += 1
        start = self._starts[self.number]
        stop = min(self.end, self._ends[self.number]) - start
        origin = self._origins[self.number]
        self._stream = await self.stack.enter_async_context(origin.open(at - start, stop))
        return self._stream

    async def chunk(self, limit: int) -> bytes:
        """Return some bytes; none at the end."""
        stream = self._stream
        if stream is None:
            return b""
        left = self._ends[self.number] - self._starts[self.number] - stream.at
        if not left:
            if self._ends[self.number] >= self.end:
                return b""
            await self.stack.aclose()
            stream = await self.begin(self._ends[self.number])
            left = self._ends[self.number] - self._starts[self.number]
        return await stream.chunk(min(limit, left))
