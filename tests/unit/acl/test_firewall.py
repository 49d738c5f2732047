"""The shell around nft: what it calls, what its failures become, and the real program's ways."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.acl import firewall
from agent.acl.firewall import Events, Finished, Firewall, run_nft
from agent.errors import EnvironmentFault


class Nft:
    """Stands for nft: remembers calls, and ends as it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], str]] = []
        self.ends = Finished(0, b"", b"")

    async def __call__(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        self.calls.append((list(arguments), stdin.decode()))
        return self.ends


class Watch(Events):
    """Stands for the kernel's events; `deaf` is a kernel that gives none."""

    deaf = False

    def __init__(self, table: str) -> None:
        if self.deaf:
            raise PermissionError("no")
        self.news, self.closed, self.table = False, False, table

    def since_last(self) -> bool:
        news, self.news = self.news, False
        return news

    def close(self) -> None:
        self.closed = True


class Deaf(Watch):
    deaf = True


def made(nft: Nft, watches: list[Watch]) -> Firewall:
    def watch(table: str) -> Watch:
        watches.append(Watch(table))
        return watches[-1]

    return Firewall("covey0", nft, watch)


async def test_a_table_from_first_to_last() -> None:
    nft = Nft()
    watches: list[Watch] = []
    wall = made(nft, watches)
    assert wall.table == "inet covey-covey0"
    assert not wall.touched()
    await wall.apply("rules")
    (watch,) = watches
    assert watch.table == "covey-covey0"
    watch.news = True
    assert wall.touched()
    watch.news = True
    await wall.apply("more")  # what it did itself is no news
    assert not wall.touched()
    await wall.remove()
    assert watch.closed
    assert not wall.touched()
    assert nft.calls == [
        (["-f", "-"], "rules"),
        (["-f", "-"], "more"),
        (["-f", "-"], "table inet covey-covey0\ndelete table inet covey-covey0\n"),
    ]


async def test_a_kernel_that_tells_nothing_is_no_fault() -> None:
    wall = Firewall("covey0", Nft(), Deaf)
    await wall.apply("rules")
    assert not wall.touched()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (b"Operation not permitted (you must be root)\n", "needs CAP_NET_ADMIN"),
        (b"x: Error: cache initialization failed: Operation not permitted\n", "CAP_NET_ADMIN"),
        (b"/dev/stdin:1:4-4: Error: syntax error\nbad\n", "nft failed: /dev/stdin:1:4-4: Error"),
        (b"", "nft failed: exit code 1"),
    ],
)
async def test_what_nft_says_becomes_a_fault(stderr: bytes, said: str) -> None:
    nft = Nft()
    nft.ends = Finished(1, b"", stderr)
    wall = made(nft, [])
    for call in (wall.apply("rules"), wall.remove(), wall.counters()):
        with pytest.raises(EnvironmentFault) as caught:
            await call
        assert said in caught.value.message
        assert caught.value.hint


async def test_counters_are_read_from_json() -> None:
    nft = Nft()
    listing = {
        "nftables": [
            {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"counter": {"family": "inet", "name": "rule1", "table": "t", "handle": 2,
                         "packets": 5, "bytes": 300}},
        ]
    }  # fmt: skip
    nft.ends = Finished(0, json.dumps(listing).encode(), b"")
    assert await made(nft, []).counters() == {"rule1": (5, 300)}
    assert nft.calls == [(["-j", "list", "counters", "table", "inet", "covey-covey0"], "")]
    nft.ends = Finished(0, b"rubbish", b"")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        await made(nft, []).counters()


def test_an_interface_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot be an interface name"):
        Firewall('covey0" accept')


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(firewall, "_PATH", str(tmp_path))
    return tmp_path / "nft"


def script(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


async def test_nft_is_given_its_input_and_plain_words(program: Path) -> None:
    script(program, 'cat; echo "$LC_ALL $*" >&2; exit 3')
    assert await run_nft(["-f", "-"], b"rules") == Finished(3, b"rules", b"C -f -\n")


async def test_nft_that_is_not_installed(program: Path) -> None:
    with pytest.raises(EnvironmentFault, match="nft is not installed") as caught:
        await run_nft(["-f", "-"], b"")
    assert "nftables" in caught.value.hint


async def test_nft_that_hangs_is_ended(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(program, "exec sleep 60")
    monkeypatch.setattr(firewall, "COMMAND_TIMEOUT_S", 0.05)
    with pytest.raises(EnvironmentFault, match="nft did not end"):
        await run_nft([], b"")


async def test_a_cancelled_call_leaves_no_process(program: Path) -> None:
    pipe = Path(f"{program}.pid")
    os.mkfifo(pipe)
    script(program, f"echo $$ > {pipe}; exec sleep 60")
    task = asyncio.create_task(run_nft([], b""))
    pid = int(await asyncio.to_thread(pipe.read_text))  # waits until it has started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
