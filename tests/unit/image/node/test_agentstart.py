"""What the agent's service is told before it starts an agent, and what it does then."""

from __future__ import annotations

import io
import os
import sys

import pytest

from image.node import agentstart
from image.node.agentstart import told


def test_a_member_starts_its_agent() -> None:
    assert told(io.StringIO("\nup\n")) == ({}, ("agent", "up", "--foreground"))


def test_a_newcomer_joins_by_the_line_that_follows() -> None:
    words = io.StringIO("https_proxy=http://u:p=@host:1\nno_proxy=localhost\n\njoin\n{wish}\n")
    environment, command = told(words)
    assert environment == {"https_proxy": "http://u:p=@host:1", "no_proxy": "localhost"}
    assert command[-1] == "--join-from-stdin"
    assert words.readline() == "{wish}\n"


@pytest.mark.parametrize("words", ["", "a=b\n", "\n", "\ngo\n"])
def test_a_word_that_did_not_come_starts_nothing(words: str) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        told(io.StringIO(words))


def test_the_agent_gets_its_environment_and_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(agentstart.loading, "load", lambda: None)
    monkeypatch.setattr(
        agentstart, "agent", lambda: started.append((sys.argv, os.environ["no_proxy"]))
    )
    monkeypatch.setattr(sys, "argv", ["agentstart"])
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "stdin", io.StringIO("no_proxy=here\n\nup\n"))
    agentstart.main()
    assert started == [(["agent", "up", "--foreground"], "here")]


def test_a_machine_that_waits_keeps_nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Exception):
        pass

    def execv(path: str, words: tuple[str, ...]) -> None:
        raise Gone(path, words)

    monkeypatch.setattr(agentstart.loading, "load", lambda: None)
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nwait\n"))
    with pytest.raises(Gone, match="/bin/sleep"):
        agentstart.main()
