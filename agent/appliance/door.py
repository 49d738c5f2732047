"""Asks the appliance's own updater: to install what a source gives, to go back, to reset. A shell.

Its side of the conversation is described in `image/node/updating.py`. An update's bytes go to it as
they come; it verifies them, so nobody between has to be trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

from agent.errors import CoveyError, NotRunning, StateError, UsageError, from_wire

SOCKET = Path("/run/covey/update.sock")
RELEASE = Path("/usr/lib/covey/release")
# It says something each half second, but for while a slow card takes in what was written.
_ANSWER_S = 300.0
_MAX_LINE_BYTES = _CHUNK_BYTES = 1 << 16
# What an update begins with (`image/node/manifest.py`).
_MAX_HEAD_BYTES = 16 * 1024

Do = Literal["install", "back", "reset", "restart", "status"]
Tell = Callable[[str, int, int], None]
"""Hears the phase ("writing", "reading back"), the bytes that are done, and all."""
OpenAt = Callable[[int], AsyncGenerator[bytes, None]]
"""Gives an update's bytes from one on."""


def ignore(_phase: str, _done: int, _total: int) -> None:
    """Tell nobody."""


async def ask(
    do: Do, *, restart: bool = False, start: int = 0,
    source: AsyncIterator[bytes] | None = None, tell: Tell = ignore,
) -> dict[str, Any]:  # fmt: skip
    """Have the updater do something and return its answer; `source` is the update to install.

    Behind its manifest that begins at byte `start` of what goes into the slot.

    Raises UsageError on a machine that is no appliance, NotRunning where nobody answers, and the
    CoveyError that the updater or the source raised.
    """
    async with _opened({"do": do, "restart": restart, "start": start}) as (reader, writer):
        return await _converse(reader, writer, source, tell)


async def install(open_at: OpenAt, tell: Tell) -> dict[str, Any]:
    """Install the update that `open_at` gives from a byte on; it is not asked for what came before.

    Returns and raises as `ask` does.
    """
    came = (await ask("status"))["partial"]
    if came is not None:
        head = await _head(open_at(0))
        if hashlib.sha256(head).hexdigest() == came["etag"]:
            rest = _after(head, open_at(len(head) + came["size"]))
            return await ask("install", start=came["size"], source=rest, tell=tell)
    return await ask("install", source=open_at(0), tell=tell)


async def _head(source: AsyncGenerator[bytes, None]) -> bytes:
    """Return an update's first two lines; b"" where there are none."""
    raw = b""
    async with contextlib.aclosing(source) as chunks:
        async for chunk in chunks:
            raw += chunk
            if raw.count(b"\n") > 1 or len(raw) > _MAX_HEAD_BYTES:
                break
    return raw[: raw.find(b"\n", raw.find(b"\n") + 1) + 1]


async def _after(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk


@contextlib.asynccontextmanager
async def given(start: int) -> AsyncIterator[tuple[dict[str, Any], AsyncIterator[bytes]]]:
    """Ask for the signed update to the version that runs: its size and tag, and its bytes.

    The bytes are those from `start` on. Raises as `ask` does, and StateError where there is none.
    """
    async with _opened({"do": "give", "start": start}) as (reader, _):
        facts = await _hear(reader, ignore)

        async def rest() -> AsyncIterator[bytes]:
            left = facts["size"] - start
            while left > 0:
                async with asyncio.timeout(_ANSWER_S):
                    chunk = await reader.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise StateError("the updater ended before the update did")
                left -= len(chunk)
                yield chunk

        yield facts, rest()


@contextlib.asynccontextmanager
async def leaving() -> AsyncIterator[None]:
    """Have this machine say that it is about to restart, for as long as the block lasts.

    Raises as `ask` does, and StateError where another command has it say so.
    """
    async with _opened({"do": "leave"}) as (reader, _):
        await _hear(reader, ignore)
        yield


@contextlib.asynccontextmanager
async def _opened(
    request: dict[str, Any],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if not RELEASE.exists():
        raise UsageError(
            "this machine is no appliance of Covey, so it has no slots to update or reset",
            hint="Update the package instead, as it was installed (`git pull && make setup`); "
            "`agent leave` forgets the mesh.",
        )
    try:
        reader, writer = await asyncio.open_unix_connection(SOCKET, limit=_MAX_LINE_BYTES)
    except PermissionError:
        raise NotRunning(
            f"the updater's socket {SOCKET} is closed to this user", hint="Run this as root."
        ) from None
    except OSError:
        raise NotRunning(
            "the appliance's updater does not answer",
            hint="The watching service starts it; restart the machine if that goes on.",
        ) from None
    try:
        with contextlib.suppress(OSError):
            writer.write(json.dumps(request).encode() + b"\n")
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    source: AsyncIterator[bytes] | None, tell: Tell,
) -> dict[str, Any]:  # fmt: skip
    """Send and hear at the same time; what the updater says last counts before a source's fault."""
    sending = asyncio.create_task(_send(writer, source), name="update source")
    hearing = asyncio.create_task(_hear(reader, tell), name="updater")
    try:
        await asyncio.wait([sending, hearing], return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and (fault := sending.exception()) is not None and not hearing.done():
            # Without the rest it ends by itself, and keeps the lock until then.
            with contextlib.suppress(OSError):
                writer.write_eof()
            await asyncio.wait([hearing], timeout=_ANSWER_S)
            raise fault
        return await hearing
    finally:
        for task in (sending, hearing):
            task.cancel()
        await asyncio.gather(sending, hearing, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter, source: AsyncIterator[bytes] | None) -> None:
    try:
        if source is not None:
            async for chunk in source:
                writer.write(chunk)
                await writer.drain()
        writer.write_eof()
    except OSError:
        # It has heard enough, and says why.
        return


async def _hear(reader: asyncio.StreamReader, tell: Tell) -> dict[str, Any]:
    while True:
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await reader.readline()
            answer = json.loads(line)
        except TimeoutError:
            raise NotRunning(f"the updater says nothing for {_ANSWER_S:.0f} s") from None
        except (OSError, ValueError):
            raise StateError(
                "the updater ended without an answer",
                hint="`agent update --status` shows how this machine is.",
            ) from None
        match answer:
            case {"phase": str(phase), "done": int(done), "total": int(total)}:
                tell(phase, done, total)
            case {"done": dict(found)}:
                return found
            case {"error": dict(fields)}:
                raise from_wire(fields)
            case _:
                raise CoveyError(f"the updater says what nobody knows: {line[:80]!r}")
