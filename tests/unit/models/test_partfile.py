"""The part file: what a kill, a torn line, another file or a full disk leaves of it."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from servers import Server, serving

from agent.errors import EnvironmentFault
from agent.models import partfile, pieces
from agent.models.manifest import MIN_PIECE_BYTES
from agent.models.partfile import PartFile
from agent.models.transfer import SLOTS

BODY = random.Random(5).randbytes(60 * MIN_PIECE_BYTES + 99)
PLAN = pieces.blind(len(BODY), MIN_PIECE_BYTES)
ROOT = Path(__file__).parents[3]


def fill(part: PartFile, *indices: int) -> None:
    for index in indices:
        part.write(index, BODY[PLAN[index].start : PLAN[index].end])


def left(path: Path, origin: str = "a") -> set[int]:
    with PartFile(path, PLAN, [len(BODY)], origin) as part:
        return set(part.done)


async def test_killed_at_any_moment_it_goes_on_and_fetches_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.part"
    chance = random.Random(6)
    server = Server(BODY, rate=3e6)
    kills = came = 0
    async with serving(server):
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).parent / "fetching.py"), server.url, str(path),
                str(len(BODY)), stdout=asyncio.subprocess.PIPE, cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begun\n"
            lines = asyncio.create_task(process.stdout.read())
            done, _ = await asyncio.wait(
                [lines], timeout=None if kills >= 5 else chance.uniform(0.05, 0.35)
            )
            if not done:
                process.kill()
                kills += 1
            came += sum(map(int, (await lines).split()))
            if await process.wait() == 0:
                break
    assert kills
    assert path.read_bytes() == BODY
    assert left(path, '1 "one"') == set(range(len(PLAN)))
    # A kill costs the pieces that were under way: one for each request.
    assert len(BODY) <= came <= len(BODY) + kills * SLOTS * MIN_PIECE_BYTES


@pytest.mark.parametrize("tail", [b"7", b"7\n999999\n", b"7\n\0\0\0\0", b"7\nx\n8\n", b"7\n-1\n"])
def test_a_torn_or_damaged_journal_counts_up_to_there(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "m.part"
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 3, 4)
    with part.journal.open("ab") as file:
        file.write(tail)
    assert left(path) == ({3, 4, 7} if b"\n" in tail else {3, 4})
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 9)
    assert left(path) >= {3, 4, 9}


def test_every_beginning_of_a_journal_is_read_without_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.part"
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 0, 10, 11)
    raw = part.journal.read_bytes()
    head = raw.index(b"\n")
    for length in (0, 1, head // 2, *range(head, len(raw))):
        part.journal.write_bytes(raw[:length])
        whole = raw[:length].count(b"\n")
        assert left(path) == {0, 10, 11} & set([0, 10, 11][: max(0, whole - 1)])
        with PartFile(path, PLAN, [len(BODY)], "a") as again:
            fill(again, *({0, 10, 11} - again.done))


def test_what_is_of_another_file_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "m.part"
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 1)
    assert left(path, "b") == set()
    assert path.read_bytes()[PLAN[1].start : PLAN[1].end] == bytes(PLAN[1].size)
    other = pieces.blind(len(BODY), 2 * MIN_PIECE_BYTES)
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 1)
    with PartFile(path, other, [len(BODY)], "a") as part:
        assert part.done == set()


def test_a_journal_without_its_part_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.part"
    with PartFile(path, PLAN, [len(BODY)], "a") as part:
        fill(part, 1)
    path.unlink()
    assert left(path) == set()
    part.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with PartFile(tmp_path / "m.part", PLAN, [len(BODY)], "a") as part:
        fill(part, 0)
        monkeypatch.setattr(partfile.os, "pwrite", full)
        with pytest.raises(EnvironmentFault, match=r"is full: 66 kB more .* free") as caught:
            fill(part, 1)
        monkeypatch.undo()
        assert str(tmp_path) in caught.value.message
    assert left(tmp_path / "m.part") == {0}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        PartFile(tmp_path / "file" / "m.part", PLAN, [len(BODY)])


def test_nothing_is_written_once_it_is_closed(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "m.part", PLAN, [len(BODY)])
    part.close()
    part.close()
    with pytest.raises(EnvironmentFault):
        fill(part, 1)
