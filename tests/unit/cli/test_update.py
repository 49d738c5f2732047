"""`agent update` and `agent factory-reset`: what is asked of the updater, and what people read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.appliance import door, sources, turn
from agent.cli import update
from agent.errors import UsageError

STATUS: dict[str, Any] = {
    "version": "0.1.0", "slot": "a", "next": "a", "trial": None, "why_not": "", "last_error": "",
    "floor": "0.0.0", "takes_updates": True, "reset": False,
    "slots": {
        "a": {"standing": "good", "tries_left": None, "why": "", "version": "0.1.0"},
        "b": {"standing": "empty", "tries_left": None, "why": "", "version": ""},
    },
}  # fmt: skip


class Updater:
    def __init__(self) -> None:
        self.why: list[str] = []
        self.asked: list[tuple[str, bool, bytes | None]] = []
        self.answer: dict[str, Any] = {"version": "0.2.0", "slot": "b", "restarts": True}

    async def ask(self, do: str, *, restart: bool) -> dict[str, Any]:
        self.asked.append((do, restart, None))
        return self.answer | {"restarts": restart}

    async def install(
        self, open_at: Callable[[int], AsyncIterator[bytes]], tell: door.Tell
    ) -> dict[str, Any]:
        tell("writing", 1, 2)
        raw, rest = [b"".join([chunk async for chunk in open_at(at)]) for at in (0, 2)]
        assert rest == raw[2:]
        self.asked.append(("install", False, raw))
        return self.answer | {"restarts": False}

    async def wait(self, client: object, port: int, tell: turn.Tell) -> None:
        if self.why:
            tell(self.why.pop(0))

    async def restart(self, client: object, port: int, do: str, tell: turn.Tell) -> dict[str, Any]:
        await self.wait(client, port, tell)
        return await self.ask(do, restart=True)

    async def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/peers"
        return {"peers": [{"name": "shed-2", "node": "12D3", "ipv6": "fd86::2"}]}


@pytest.fixture
def updater(monkeypatch: pytest.MonkeyPatch) -> Updater:
    made = Updater()
    monkeypatch.setattr(door, "ask", made.ask)
    monkeypatch.setattr(door, "install", made.install)
    monkeypatch.setattr(turn, "wait", made.wait)
    monkeypatch.setattr(turn, "restart", made.restart)
    monkeypatch.setattr(update, "call", lambda settings, use, doing="": asyncio.run(use(made)))
    return made


def run(*arguments: str, sends: str = "") -> Result:
    return CliRunner().invoke(update.update, arguments, input=sends)


def test_a_file_is_installed(updater: Updater, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    done = run(str(tmp_path / "file"))
    assert done.stdout == "Version 0.2.0 is in slot b; this machine restarts into it now.\n"
    assert updater.asked == [("install", False, b"bytes"), ("restart", True, None)]
    assert "the next start runs it" in run(str(tmp_path / "file"), "--no-restart").stdout
    assert updater.asked[-1] == ("install", False, b"bytes")
    assert json.loads(run(str(tmp_path / "file"), "--json").stdout)["version"] == "0.2.0"


def test_what_a_member_runs_is_fetched_from_it(
    updater: Updater, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int]] = []

    async def url(address: str, name: str, start: int) -> AsyncIterator[bytes]:
        asked.append((address, name, start))
        yield b"bytes"[start:]

    monkeypatch.setattr(sources, "url", url)
    assert run("--from", "shed-2").exit_code == 0
    address = "http://[fd86::2]:7070/appliance/update"
    assert asked == [(address, "shed-2", 0), (address, "shed-2", 2)]
    assert updater.asked[0] == ("install", False, b"bytes")
    assert "no other member is called shed-9" in str(run("--from", "shed-9").exception)


def test_it_waits_for_the_other_nodes_of_its_rings(updater: Updater, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    updater.why = ["box is away", "den has a version on trial"]
    done = run(str(tmp_path / "file"))
    assert done.stderr.splitlines() == [
        "This machine waits: box is away. --now would not.",
        "This machine waits: den has a version on trial. --now would not.",
    ]
    assert [asked[0] for asked in updater.asked] == ["install", "restart"]
    updater.why = ["box is away"] * 3
    assert run(str(tmp_path / "file"), "--now").stderr == ""
    assert run(str(tmp_path / "file"), "--no-restart").stderr == ""


def test_back(updater: Updater) -> None:
    updater.answer["version"] = ""
    assert run("--back").stdout.startswith("The other version is in slot b; this machine")
    assert updater.asked == [("back", True, None)]
    updater.why = ["box is away"]
    assert run("--back", "--now").stderr == ""
    assert "box is away" in run("--back").stderr


@pytest.mark.parametrize(
    "words", [(), ("x", "--status"), ("--back", "--status"), ("x", "--from", "y")]
)
def test_one_thing_at_a_time(updater: Updater, words: tuple[str, ...]) -> None:
    assert isinstance(run(*words).exception, UsageError)
    assert updater.asked == []


def shown(updater: Updater, **facts: Any) -> list[str]:
    updater.answer = STATUS | facts
    done = run("--status")
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_the_status(updater: Updater) -> None:
    assert shown(updater) == [
        "Covey 0.1.0 runs from slot a.", "  Slot a: good, version 0.1.0", "  Slot b: empty",
    ]  # fmt: skip
    slots = STATUS["slots"] | {
        "b": {"standing": "trial", "tries_left": 2, "why": "", "version": "0.2.0"}
    }
    assert shown(updater, slots=slots, next="b")[2:] == [
        "  Slot b: on trial, 2 starts left, version 0.2.0", "  The next start is from slot b.",
    ]  # fmt: skip
    trial = {"healthy_s": 60.0, "good_in_s": 240.0, "over_in_s": 1000.0}
    assert "  On trial: healthy for 60 s; good in 4 min if that stays." in shown(
        updater, trial=trial
    )
    trial = {"healthy_s": None, "good_in_s": None, "over_in_s": 1000.0}
    assert "  On trial: not healthy now; given up in 17 min if that stays." in shown(
        updater, trial=trial
    )
    lines = shown(
        updater, why_not="version 0.2.0 in slot b did not come up", last_error="It is old.",
        reset=True, takes_updates=False, trial={"over_in_s": None},
    )  # fmt: skip
    assert lines[3:] == [
        "  On trial since this start.",
        "  The last update was taken back: version 0.2.0 in slot b did not come up.",
        "  The last update was not installed: It is old.",
        "  The next start empties the data partition.",
        "  The image was built without a key, so it takes no update: flash the next.",
    ]
    assert json.loads(run("--status", "--json").stdout)["reset"] is True


def test_a_factory_reset_asks_first(updater: Updater) -> None:
    runner = CliRunner()
    assert runner.invoke(update.factory_reset, input="n\n").exit_code != 0
    assert updater.asked == []
    done = runner.invoke(update.factory_reset, input="y\n")
    assert "as it was when it was flashed" in done.stdout
    assert runner.invoke(update.factory_reset, ["--yes"]).exit_code == 0
    assert updater.asked == [("reset", True, None)] * 2


def test_elsewhere_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(door, "RELEASE", tmp_path / "none")
    with pytest.raises(UsageError, match="no appliance"):
        asyncio.run(door.ask("status"))
    assert isinstance(run("--status").exception, UsageError)
