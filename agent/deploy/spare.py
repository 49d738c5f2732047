"""One engine process in advance, for the next stage: a ring that broke waits for its start.

For `engines.py`. It has loaded Python and numpy, half a second on a small machine, and takes 45 MB
of which others share a part; so there is one only while this node has a part of a ring, or may get
one of those that the mesh is to run.
"""

from __future__ import annotations

import asyncio
import contextlib

from agent.engine.supervisor import spawn


class Spare:
    """At most one process that waits to be told what engine it is."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._making: asyncio.Task[None] | None = None

    def take(self) -> asyncio.subprocess.Process | None:
        """Return it, if there is one; the caller owns it then."""
        process, self._process = self._process, None
        return process if process is not None and process.returncode is None else None

    def wish(self) -> None:
        """Have one made in the background."""
        there = self._process is not None and self._process.returncode is None
        if not there and (self._making is None or self._making.done()):
            self._making = asyncio.create_task(self._make(), name="spare engine")

    async def drop(self) -> None:
        """End it; harmless where there is none."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait([self._making])
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def _make(self) -> None:
        with contextlib.suppress(OSError):  # then the next engine is started when it is needed
            self._process = await spawn()
