"""Where members were reached is there after a restart; whatever the file holds, nothing breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import StateError
from agent.identity.keys import NodeId
from agent.traversal import memory
from agent.traversal.memory import PathMemory

NODES = [NodeId(bytes([n]) * 32) for n in range(1, 6)]


def loaded(file: Path) -> PathMemory:
    made = PathMemory(file)
    made.load()
    return made


def test_what_was_saved_is_there_again_and_only_of_members(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    first = loaded(file)
    first.save({NODES[0]: ("192.0.2.1", 51820), NODES[1]: ("2001:db8::1", 5)}, NODES)
    again = loaded(file)
    assert again.place(NODES[0]) == ("192.0.2.1", 51820)
    assert again.place(NODES[1]) == ("2001:db8::1", 5)
    assert again.place(NODES[2]) is None
    again.save({NODES[0]: ("192.0.2.9", 7)}, [NODES[0], NODES[2]])
    third = loaded(file)
    assert third.place(NODES[0]) == ("192.0.2.9", 7)
    assert third.place(NODES[1]) is None, "it is no member any more"


def test_who_is_not_reached_now_is_remembered_still(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    loaded(file).save({NODES[0]: ("192.0.2.1", 1)}, NODES)
    loaded(file).save({NODES[1]: ("192.0.2.2", 2)}, NODES)
    assert loaded(file).place(NODES[0]) == ("192.0.2.1", 1)


def test_no_news_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    made = loaded(file)
    made.save({NODES[0]: ("192.0.2.1", 1)}, NODES)
    file.unlink()
    made.save({NODES[0]: ("192.0.2.1", 1)}, NODES)
    assert not file.exists()


def test_the_longest_known_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PLACES_MAX", 2)
    file = tmp_path / "paths.json"
    made = loaded(file)
    for n, node in enumerate(NODES[:3]):
        made.save({node: ("192.0.2.1", n + 1)}, NODES)
    assert [loaded(file).place(node) for node in NODES[:3]] == [
        None, ("192.0.2.1", 2), ("192.0.2.1", 3),
    ]  # fmt: skip


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        loaded(tmp_path / "no" / "paths.json").save({NODES[0]: ("192.0.2.1", 1)}, NODES)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20)
    | st.sampled_from([str(NODES[0]), "192.0.2.1:5", "host:0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=60), inner),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | JSON.map(lambda value: repr(value).encode()))
def test_whatever_the_file_holds(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "paths.json"
    file.write_bytes(content)
    file.chmod(0o600)
    made = loaded(file)
    made.save({NODES[0]: ("192.0.2.1", 1)}, NODES)
    assert loaded(file).place(NODES[0]) == ("192.0.2.1", 1)


def test_what_others_may_write_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    loaded(file).save({NODES[0]: ("192.0.2.1", 1)}, NODES)
    file.chmod(0o666)
    assert loaded(file).place(NODES[0]) is None
