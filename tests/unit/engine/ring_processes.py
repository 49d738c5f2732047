"""Rings of real engine processes over loopback TCP, as the agent runs them, for the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import engine_rings as rings

from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine

RING = "5a" * 16


def specs(
    parts: list[Path], cache: str, address: str = "127.0.0.1", **changes: object
) -> list[EngineSpec]:
    """Return the specs of a ring: the head with the first and last part, and the stages."""
    common = {
        "n_ctx": rings.N_CTX, "n_batch": rings.N_BATCH, "slots": 4, "threads": 1, "ring": RING,
        "epoch": 3, "stages": len(parts) - 1, "listen": address, "predecessor": address,
        "silence_s": 10.0, "least_silence_s": 10.0, "join_timeout_s": 20.0, "cache": cache,
        "flash_attention": False,  # as `rings.answer`
        # All files of a run of the tests lie there, also those that a head goes on with.
        "later": (str(parts[0].parents[1]),),
        **changes,
    }  # fmt: skip
    head = EngineSpec(role="head", files=(str(parts[0]), str(parts[-1])), model_name="tiny",
                      http_address=address, **common)  # fmt: skip
    stages = [
        EngineSpec(role="stage", files=(str(part),), stage=index, **common)
        for index, part in enumerate(parts[1:-1], 1)
    ]
    return [head, *stages]


@asynccontextmanager
async def running(wanted: list[EngineSpec]) -> AsyncIterator[list[Engine]]:
    """Run a ring of engine processes, joined and ready."""
    engines: list[Engine] = []
    try:
        for spec in wanted:
            engines.append(await Engine.start(spec))
        for engine, successor in zip(engines, engines[1:] + engines[:1], strict=True):
            await engine.connect(successor.spec.listen, successor.port)
        await asyncio.gather(*(engine.wait_ready() for engine in engines))
        yield engines
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
