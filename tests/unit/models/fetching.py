"""Fetches URL to PATH (of SIZE bytes) in this process, which a test kills: the real thing.

Prints how many bytes came, each time that some did.
"""

import asyncio
import sys
from pathlib import Path

from agent.models import origins, pieces
from agent.models.fetch import fetch
from agent.models.manifest import MIN_PIECE_BYTES
from agent.models.origins import HttpOrigin, Stream
from agent.models.partfile import PartFile


async def main(url: str, path: str, size: int) -> None:
    plan = pieces.blind(size, MIN_PIECE_BYTES)
    async with origins.session() as session:
        origin = HttpOrigin(session, url, networks=())
        with PartFile(Path(path), plan, [size], origin='1 "one"') as part:
            print("begun", flush=True)
            await fetch(part, [origin])


read = Stream.chunk


async def chunk(stream: Stream, limit: int) -> bytes:
    raw = await read(stream, limit)
    print(len(raw), flush=True)
    return raw


Stream.chunk = chunk  # type: ignore[method-assign]
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
