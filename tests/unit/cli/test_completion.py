"""Completion: of commands at once, of names from a running agent, and silence without one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ANSWERS: dict[str, Any] = {
    "/v1/members": {"members": [{"name": "shed"}, {"name": "desk"}, {"name": "den\n"}]},
    "/v1/deployments": {"deployments": [{"name": "llama"}, {"name": "llama"}, {"name": "qwen"}]},
    "/v1/models": {"models": [{"name": "here", "here": True}, {"name": "there", "here": False}]},
}


@contextmanager
def agent(place: Path, answers: dict[str, Any] = ANSWERS) -> Iterator[None]:
    """Answer each GET on a unix socket, as the agent does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                path = connection.recv(4096).decode().split()[1]
                body = json.dumps(answers[path]) if path in answers else "nonsense"
                connection.sendall(f"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{body}".encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def environment(place: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    own = {"COVEY_CONFIG": os.devnull, "COVEY_NODE_SOCKET": str(place), "PYTHONPATH": str(ROOT)}
    return kept | own | more


def complete(line: str, place: Path, program: str = "agent") -> list[str]:
    """Return what click tells a bash that completes the last word of `line`."""
    words = line.split(" ")
    variables = {
        "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
        f"_{program.upper()}_COMPLETE": "bash_complete",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", program], env=environment(place, **variables), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("agent und", ["plain,undeploy"]),
        ("agent mesh ", ["plain,create", "plain,root-key"]),
        ("agent plan --obj", ["plain,--objective"]),
        ("agent plan --objective l", ["plain,latency"]),
        ("agent revoke ", ["plain,desk", "plain,shed"]),
        ("agent ping s", ["plain,shed"]),
        ("agent undeploy ll", ["plain,llama"]),
        ("agent rm ", ["plain,here"]),
        ("agent pull th", ["plain,there"]),
        ("agent pull ./mod", ["file,./mod"]),
        ("agent deploy ", ["plain,covey-mini", "plain,here", "plain,there"]),
        ("agent up --set network.listen", ["plain,network.listen_port="]),
    ],
)
def test_what_the_running_agent_knows_is_completed(
    tmp_path: Path, line: str, found: list[str]
) -> None:
    with agent(tmp_path / "s"):
        assert complete(line, tmp_path / "s") == found


@pytest.mark.slow
def test_without_an_agent_and_with_a_broken_one_nothing_is_said(tmp_path: Path) -> None:
    assert complete("agent revoke ", tmp_path / "none") == []
    with agent(tmp_path / "s", {"/v1/members": {"error": {"kind": "NotRunning"}}}):
        assert complete("agent revoke ", tmp_path / "s") == []
        assert complete("agent undeploy ", tmp_path / "s") == []
    assert complete("agent revoke --config /none ", tmp_path / "s") == []


@pytest.mark.slow
def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        assert complete("agent revoke ", tmp_path / "s") == []


# What each shell is told after `agent grant sh`. zsh's own completion needs a terminal: here it is
# two functions in its place, which say what the script gives them.
TYPED = {
    "bash": """
        eval "$(agent completion bash)"
        complete -p agent
        COMP_WORDS=(agent grant sh); COMP_CWORD=2
        _agent_completion agent
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { print -r -- compdef "$@" }
        compadd() { print -r -- ${(P)argv[-1]} }
        eval "$(agent completion zsh)"
        words=(agent grant sh); CURRENT=3
        _agent_completion
    """,
    "fish": """
        agent completion fish | source
        complete -C "agent grant sh"
    """,
}
OPTIONS = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}
SAID = {
    "bash": ["complete -o nosort -F _agent_completion agent", "shed"],
    "zsh": ["compdef _agent_completion agent", "shed"],
    "fish": ["shed"],
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", TYPED)
def test_a_shell_completes_by_the_script_that_is_printed(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    wrapper = tmp_path / "bin" / "agent"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    with agent(tmp_path / "s"):
        done = subprocess.run(
            [shell, *OPTIONS[shell], "-c", TYPED[shell]], capture_output=True, text=True,
            check=True, env=environment(tmp_path / "s", PATH=path, HOME=str(tmp_path)),
        )  # fmt: skip
    assert done.stdout.splitlines() == SAID[shell]


@pytest.mark.parametrize("program", ["agent", "gateway"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(tmp_path: Path, program: str, shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, "completion", shell], env=environment(tmp_path / "s"),
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert f"_{program}_completion" in done.stdout
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.slow
def test_the_gateway_completes_its_keys(tmp_path: Path) -> None:
    store = tmp_path / "gateway.db"
    run = [sys.executable, "-m", "gateway", "keys", "create", "house", "--store", str(store)]
    subprocess.run(run, check=True, capture_output=True, cwd=ROOT, env=environment(tmp_path / "s"))
    line = f"gateway keys revoke --store {store} hou"
    assert complete(line, tmp_path / "s", "gateway") == ["plain,house"]
    assert complete(f"gateway keys revoke --store {tmp_path}/none h", tmp_path, "gateway") == []
    assert complete("gateway sta", tmp_path, "gateway") == ["plain,status"]
    bad = f"gateway keys revoke --config {tmp_path}/none h"
    assert complete(bad, tmp_path, "gateway") == []
