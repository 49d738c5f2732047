"""What a killed agent left is taken away, what is nobody's or another's is not."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from agent import leftovers
from agent.acl.firewall import Finished
from agent.config import Config
from agent.errors import EnvironmentFault, StateError
from agent.membership.store import StateDir
from agent.overlay.userspace import UserspaceDevice


class Nft:
    """nftables with some tables."""

    def __init__(self, *tables: str, code: int = 0) -> None:
        self.tables, self.code = set(tables), code
        self.changes: list[str] = []

    async def __call__(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        if arguments[0] == "list":
            return Finished(0, "".join(f"{table}\n" for table in self.tables).encode(), b"")
        self.changes.append(stdin.decode())
        return Finished(self.code, b"", b"it cannot be" if self.code else b"")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return those of a node without an interface."""
    monkeypatch.setattr(UserspaceDevice, "clear", lambda self, key: False)
    node = msgspec.structs.replace(Config().node, state_dir=str(tmp_path / "state"))
    return msgspec.structs.replace(Config(), node=node)


def test_where_no_node_was_there_is_nothing_and_nothing_is_made(settings: Config) -> None:
    assert leftovers.take_away(settings, Nft()) == []
    assert not settings.state_dir.exists()


def test_its_tables_its_socket_and_its_interface_go(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StateDir(settings.state_dir).lock() as state:
        key = state.node_key()
    assert leftovers.take_away(settings, Nft("table inet mine")) == []
    keys: list[bytes] = []
    monkeypatch.setattr(UserspaceDevice, "clear", lambda self, key: keys.append(key) or True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.socket))
    nft = Nft("table inet covey-covey0", "table ip covey-paths-covey0", "table inet covey-other")
    assert leftovers.take_away(settings, nft) == [
        "interface covey0", "table inet covey-covey0", "table ip covey-paths-covey0",
        f"socket {settings.socket}",
    ]  # fmt: skip
    assert nft.changes == ["delete table inet covey-covey0\ndelete table ip covey-paths-covey0\n"]
    assert keys == [key.wireguard_private]
    assert not settings.socket.exists()


def test_while_an_agent_runs_nothing_is_touched(settings: Config) -> None:
    nft = Nft("table inet covey-covey0")
    with StateDir(settings.state_dir).lock() as state:
        state.node_key()
        with pytest.raises(StateError, match="already runs"):
            leftovers.take_away(settings, nft)
    assert nft.changes == []


def test_what_nft_refuses_is_told(settings: Config) -> None:
    with StateDir(settings.state_dir).lock() as state:
        state.node_key()
    with pytest.raises(EnvironmentFault, match="it cannot be"):
        leftovers.take_away(settings, Nft("table inet covey-covey0", code=1))
