"""The wish to drain outlives the agent, and what becomes of what still runs is said."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.deploy.drain import FILE, Drain
from agent.deploy.work import work_here
from agent.errors import StateError


def test_it_is_kept_until_it_is_taken_back(tmp_path: Path) -> None:
    drain = Drain(tmp_path)
    drain.restore()
    assert not drain.on
    assert drain.set(True)
    assert not drain.set(True)
    again = Drain(tmp_path)
    again.restore()
    assert again.on
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert again.set(False)
    assert not again.set(False)
    assert not (tmp_path / FILE).exists()
    drain.restore()
    assert not drain.on


def test_one_that_is_wished_once_ends_with_the_agent(tmp_path: Path) -> None:
    drain = Drain(tmp_path)
    drain.restore()
    assert drain.once()
    assert not drain.once()
    assert drain.on
    again = Drain(tmp_path)
    again.restore()
    assert not again.on
    # Who wishes it for good after that is heard, though nothing new follows from it.
    assert not drain.set(True)
    again.restore()
    assert again.on
    assert drain.set(False)
    again.restore()
    assert not again.on
    assert drain.once()
    assert drain.set(False)
    assert not drain.on


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged"),
        (b"\xff", "is damaged"),
        (b'{"version":1}', "is damaged"),
        (b'{"version":2,"since":1.0}', "has format 2"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / FILE
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(StateError, match=words):
        Drain(tmp_path).restore()
    assert file.read_bytes() == content


def test_what_cannot_be_kept_is_not_wished(tmp_path: Path) -> None:
    drain = Drain(tmp_path / "none")
    with pytest.raises(StateError):
        drain.set(True)
    assert not drain.on


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"{}")
    with pytest.raises(StateError):
        Drain(tmp_path).restore()


def described(**changes: Any) -> dict[str, Any]:
    fields = {"name": "m", "stages": [], "ring": "ab" * 16, "source": "", "model": "covey-mini",
              "head": "den",
              "head_name": "den", "phase": "ready", "progress": "answers", "stays": ""}  # fmt: skip
    changes.setdefault("key", changes.get("name", "m"))
    return fields | changes


@pytest.mark.parametrize(
    ("phase", "deployment", "others", "state", "stays"),
    [
        ("ready", described(), True, "its owner looks for another head", False),
        ("ready", described(head=""), True, "its owner looks for another head", False),
        ("ready", described(), False, "no other worker is there that is not draining", True),
        ("ready", described(source="den", model="/x.gguf"), True,
         "its file /x.gguf lies on den alone", True),
        ("ready", described(head="box", head_name="box", phase="loading"), True,
         "it comes up on box (loading)", False),
        ("ready", described(head="box", head_name="box", phase="waiting", progress="no memory."),
         True, "it does not come up on box: no memory.", True),
        ("draining", described(head="box"), True, "its last answers are written", False),
        ("ready", None, True, "it was undeployed", False),
    ],
)  # fmt: skip
def test_what_becomes_of_a_head(
    phase: str, deployment: dict[str, Any] | None, others: bool, state: str, stays: bool
) -> None:
    all_ = [deployment] if deployment else []
    [found] = work_here("den", "den", {"m": phase}, [], all_, {"box"} if others else set())
    assert found == {"deployment": "m", "what": "head", "state": state, "stays": stays}


def test_what_becomes_of_stages() -> None:
    ring = described(name="trio", head="box", stays="it does not fit without den")
    moves = described(name="duo", head="box", ring="cd" * 16)
    stages = [("ab" * 16, 1), ("cd" * 16, 2), ("ef" * 16, 1)]
    found = work_here("den", "den", {}, stages, [ring, moves], {"box"})
    assert [(one["deployment"], one["what"], one["state"], one["stays"]) for one in found] == [
        ("trio", "stage 1", "it does not fit without den", True),
        ("duo", "stage 2", "its head builds it without this node", False),
        ("ring efefefef", "stage 1", "its head ends it", False),
    ]
