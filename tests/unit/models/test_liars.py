"""Origins that do anything at all: with hashes known, no wrong byte is ever taken for right."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_model

from agent.errors import PeerError
from agent.models import pieces, survey
from agent.models.fetch import fetch
from agent.models.manifest import MIN_PIECE_BYTES, Manifest
from agent.models.origins import BrokenError, RefusedError, Stream
from agent.models.partfile import PartFile


class Chaos:
    """An origin that lies, breaks off, refuses or ignores ranges as often as `fault` says (0-1)."""

    def __init__(self, name: str, body: bytes, chance: random.Random, fault: float, tier: int):
        self.name, self.tier = name, tier
        self._body, self._chance, self._fault = body, chance, fault
        self._sequential = chance.random() < fault / 2

    def _happens(self, share: float = 1.0) -> bool:
        return self._chance.random() < self._fault * share

    @asynccontextmanager
    async def open(self, start: int, end: int) -> AsyncIterator[Stream]:
        await asyncio.sleep(0)
        if self._happens(0.05):
            raise RefusedError("no")
        if self._happens(0.2):
            raise BrokenError("it is silent")
        at = 0 if self._sequential else start

        async def read(limit: int) -> bytes:
            nonlocal at
            await asyncio.sleep(0)
            if self._happens(0.02):
                raise BrokenError("it broke off")
            count = self._chance.randint(1, limit)
            raw = bytearray(self._body[at : at + count])
            at += len(raw)
            if raw and self._happens(0.05):
                raw[self._chance.randrange(len(raw))] ^= 1 << self._chance.randrange(8)
            return bytes(raw)

        yield Stream(at, read, sequential=self._sequential)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=4)


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    return survey.survey(model, lambda _: None, MIN_PIECE_BYTES)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    origins=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 1)), max_size=4),
)
def test_what_is_there_is_right_whoever_sent_it(
    model: Path, manifest: Manifest, seed: int, origins: list[tuple[float, int]]
) -> None:
    body, plan = model.read_bytes(), pieces.of_manifest(manifest)
    chance = random.Random(seed)
    found = [Chaos(f"s{i}", body, chance, *one) for i, one in enumerate(origins)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.part"
        with PartFile(path, plan, [len(body)]) as part:
            try:
                asyncio.run(fetch(part, found, backoff_s=1e-4))
                assert path.read_bytes() == body
            except PeerError as error:
                assert all(fault > 0.0 for fault, _ in origins)
                assert all(f"{one.name}: " in error.message for one in found)
            done = set(part.done)
        raw = path.read_bytes()
        for index in done:
            piece = plan[index]
            assert raw[piece.start : piece.end] == body[piece.start : piece.end]
