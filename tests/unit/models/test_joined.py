"""The files of a split model read in a row, wherever a request begins and ends."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.models.joined import joined
from agent.models.origins import BrokenError, FileOrigin, Origin, RefusedError, Stream

SIZES = (700, 1, 300)
BODY = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, at, made = tmp_path_factory.mktemp("files"), 0, []
    for number, size in enumerate(SIZES):
        made.append(folder / str(number))
        made[-1].write_bytes(BODY[at : at + size])
        at += size
    return made


def origin(files: list[Path]) -> Origin:
    return joined([FileOrigin(path) for path in files], SIZES)


async def read(stream: Stream, count: int, limit: int) -> bytes:
    found = b""
    while len(found) < count:
        found += await stream.chunk(min(limit, count - len(found)))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 1001), st.integers(1, 400))
async def test_any_bytes_are_those_of_the_files_in_a_row(
    files: list[Path], start: int, length: int, limit: int
) -> None:
    end = min(start + length, sum(SIZES))
    async with origin(files).open(start, end) as stream:
        assert (stream.at, stream.sequential) == (start, False)
        assert await read(stream, end - start, limit) == BODY[start:end]
        assert stream.at == end


async def test_the_end_and_what_is_beyond_it_are_said(files: list[Path]) -> None:
    source = origin(files)
    async with source.open(999, 1001) as stream:
        await read(stream, 2, 9)
        with pytest.raises(BrokenError, match="it ended at byte 1001"):
            await stream.chunk(1)
    with pytest.raises(RefusedError, match="its files have 1001 bytes in all"):
        async with source.open(1001, 1002):
            pass
    files[2].write_bytes(bytes(301))
    with pytest.raises(RefusedError, match="file 3 of 3: the file was changed meanwhile"):
        async with source.open(600, 1001) as stream:
            await read(stream, 401, 400)
    files[2].write_bytes(BODY[701:1001])


async def test_one_file_needs_nothing_joined(files: list[Path]) -> None:
    alone = FileOrigin(files[0])
    assert joined([alone], [700]) is alone
