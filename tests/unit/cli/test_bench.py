"""`agent bench` as it is typed: options, keys, the report's files, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.cli import bench as command
from agent.comparing import asking
from agent.comparing.timing import Run
from agent.comparing.wish import Wish
from agent.errors import EnvironmentFault, PeerError, UsageError


class Measured:
    """Stands for the measuring: ours has one rate, each other another."""

    def __init__(self) -> None:
        self.rates: tuple[float, ...] = (20.0, 10.0, 10.0)
        self.wishes: list[Wish] = []

    async def __call__(self, wish: Wish, tell: Any) -> tuple[Wish, dict[int, list[Any]]]:
        self.wishes.append(wish)
        runs = tuple(Run(0.1, rate, 64, 24) for rate in self.rates[: len(wish.servers)])
        return wish, {streams: [runs] * wish.rounds for streams in wish.streams}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measured:
    made = Measured()
    monkeypatch.setattr(asking, "measure", made)
    monkeypatch.chdir(tmp_path)
    for name in (command.MESH_KEY, command.OTHER_KEY):
        monkeypatch.delenv(name, raising=False)
    return made


def run(*arguments: str) -> Result:
    words = ["--mesh", "http://127.0.0.1:8088", "--config", "/dev/null", *arguments]
    return CliRunner().invoke(command.bench, words)


@pytest.mark.parametrize(
    ("rates", "more", "code"),
    [((20, 10), (), 0), ((12, 10), (), 13), ((20, 10), ("--rounds", "2"), 14),
     ((12, 10), ("--threshold", "10"), 0)],
)  # fmt: skip
def test_the_exit_code_is_the_verdict(
    measured: Measured, rates: tuple[float, ...], more: tuple[str, ...], code: int
) -> None:
    measured.rates = rates
    done = run("--against", "http://b:1", *more)
    assert done.exit_code == code, done.output


def test_both_files_are_written_and_json_is_the_same(measured: Measured, tmp_path: Path) -> None:
    done = run("--against", "http://b:1/v1#m", "--streams", "1,8", "--json")
    (document,), (page,) = tmp_path.glob("*.json"), tmp_path.glob("*.md")
    assert json.loads(done.stdout) == json.loads(document.read_text())
    told = json.loads(done.stdout)
    assert told["outcome"] == "go"
    assert [level["streams"] for level in told["levels"]] == [1, 8]
    assert told["conditions"]["prompts, as this mesh counts"] == "24 tokens"
    assert "| b:1: `m` at http://b:1 |" in page.read_text()
    said = run("--against", "http://b:1", "--save", "x")
    assert said.stdout.endswith("Saved in x.md and x.json.\n")
    assert (tmp_path / "x.md").read_text() in said.stdout


def test_alone_it_is_measured_and_no_verdict_is_made(measured: Measured) -> None:
    done = run()
    assert done.exit_code == 0
    assert "20.0 tokens/s, compared with nothing." in done.stdout


def test_each_key_goes_to_its_server_alone(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nhttp://127.0.0.1:8088/v1/ ck-1\n\nhttp://b:1 sk-2\n")
    run("--against", "http://b:1/v1", "--against", "http://c:1", "--key-file", str(file))
    assert [one.key for one in measured.wishes[-1].servers] == ["ck-1", "sk-2", ""]
    monkeypatch.setenv(command.OTHER_KEY, "sk-3")
    monkeypatch.setenv(command.MESH_KEY, "ck-4")
    run("--against", "http://b:1")
    assert [one.key for one in measured.wishes[-1].servers] == ["ck-4", "sk-3"]
    done = run("--against", "http://b:1", "--against", "http://c:1")
    assert isinstance(done.exception, UsageError)
    assert "is one key, and 2 servers" in done.exception.message


def test_no_two_comparisons_ask_the_same(measured: Measured) -> None:
    run()
    run()
    first, second = measured.wishes
    assert first.salt != second.salt


@pytest.mark.parametrize("streams", ["", "0", "1,", "a", "257", "-1", "²", "1000"])
def test_what_are_no_streams(measured: Measured, streams: str) -> None:
    done = run(f"--streams={streams}")
    assert done.exit_code == 2
    assert measured.wishes == []


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--against", "b:1"), UsageError, "--against 'b:1' is no server's address"),
        (("--against", "http://u:p@b"), UsageError, "is no server's address"),
        (("--key-file", "none"), EnvironmentFault, "the key file none cannot be read: No such"),
        (("--key-file", "bad"), UsageError, "line 1 of bad is not `URL KEY`"),
        (("--save", "nowhere/x"), EnvironmentFault, "nothing can be written into"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    measured: Measured, tmp_path: Path, arguments: tuple[str, ...], kind: type[Exception],
    words: str,
) -> None:  # fmt: skip
    (tmp_path / "bad").write_text("secret\n")
    done = run(*arguments)
    assert isinstance(done.exception, kind)
    assert words in str(done.exception)
    assert "secret" not in str(done.exception)
    assert measured.wishes == []


def test_nothing_is_written_where_nothing_was_measured(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fail(*_: Any) -> Any:
        raise PeerError("it does not answer")

    monkeypatch.setattr(asking, "measure", fail)
    assert isinstance(run().exception, PeerError)
    assert list(tmp_path.iterdir()) == []


def test_a_report_holds_what_is_documented(measured: Measured) -> None:
    told = msgspec.json.decode(run("--against", "http://b:1", "--json").stdout)
    assert set(told) == {
        "when", "outcome", "headline", "threshold_percent", "rounds", "tokens", "prompt_tokens",
        "servers", "conditions", "levels",
    }  # fmt: skip
