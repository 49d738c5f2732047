"""Where state and socket lie by default; the gateway looks where the agent puts them."""

import os
from pathlib import Path

import pytest

from agent import client, config, places


@pytest.mark.parametrize(
    ("environment", "root", "expected"),
    [
        ({}, True, "/run/covey/agent.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, True, "/run/covey/agent.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, False, "/run/user/7/covey/agent.sock"),
        ({}, False, "/home/x/.local/state/covey/agent.sock"),
        ({"XDG_STATE_HOME": "/s"}, False, "/s/covey/agent.sock"),
    ],
)
def test_the_rule(environment: dict[str, str], root: bool, expected: str) -> None:
    found = places.socket("", "", environment, root=root, home="/home/x")
    assert str(found) == expected


def test_what_is_named_wins() -> None:
    assert str(places.socket("", "/d", {}, root=True, home="/")) == "/d/agent.sock"
    assert str(places.socket("/a.sock", "/d", {}, root=True, home="/")) == "/a.sock"
    assert str(places.state_dir({}, root=True, home="/root")) == "/var/lib/covey"


@pytest.mark.parametrize(
    "variables",
    [{}, {"COVEY_NODE_STATE_DIR": "/d"}, {"COVEY_NODE_SOCKET": "/a", "COVEY_NODE_STATE_DIR": "/d"}],
)
def test_the_gateway_looks_where_the_agent_listens(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    settings, _ = config.load(Path("/dev/null"), variables)
    assert client.default_socket({**os.environ, **variables}) == settings.socket
