"""The command line from outside: one clear line for each mistake, exit codes, and its help."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from agent.cli import cli, common, main
from agent.cli.common import ago

ROOT = Path(__file__).parents[3]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def agent(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
        state = {"COVEY_CONFIG": os.devnull, "COVEY_NODE_STATE_DIR": str(tmp_path / "state")}
        return subprocess.run(
            [sys.executable, "-m", "agent", *arguments], cwd=ROOT, env=kept | state | variables,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return agent


def error(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_mistakes_are_one_line_with_their_exit_code(run: Run) -> None:
    assert "No such command" in error(run("dance"), 2)
    assert "--help" in error(run("invite", "--ttl", "soon"), 2)
    assert "no ticket was given" in error(run("join"), 2)
    assert "no ticket was given" in error(run("join", "-"), 2)
    assert "not a ticket" in error(run("join", "x"), 6)
    assert "is no setting" in error(run("status", COVEY_NETWORK_POTR="1"), 3)
    assert "no agent is running" in error(run("status"), 10)


def test_a_ticket_comes_by_the_standard_input(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    done = subprocess.run(
        [sys.executable, "-m", "agent", "join", "-"], cwd=ROOT, capture_output=True, text=True,
        env=kept | {"COVEY_CONFIG": os.devnull, "COVEY_NODE_STATE_DIR": str(tmp_path)},
        check=False, input="x\n",
    )  # fmt: skip
    assert "not a ticket" in error(done, 6)


def test_making_a_mesh_twice_keeps_the_first(run: Run, tmp_path: Path) -> None:
    done = run("mesh", "create", "home", "--json")
    assert done.returncode == 0, done.stderr
    stored = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()}
    assert {"node.key", "root.key", "mesh.json", "certificate", "members.json"} <= stored.keys()
    assert "already in the mesh home" in error(run("mesh", "create", "other"), 4)
    assert all((tmp_path / "state" / n).read_bytes() == raw for n, raw in stored.items())


def test_a_network_that_cannot_be_is_named_with_its_key(run: Run) -> None:
    done = run("mesh", "create", "home", "--set", "network.ipv4_network=8.8.8.0/24")
    assert "network.ipv4_network" in error(done, 3)


def commands(group: click.Group, path: str = "agent") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append((f"{path} {name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
    return found


def test_a_command_like_the_one_that_is_not_there_is_named(run: Run) -> None:
    assert "Did you mean 'invite'?" in error(run("invit"), 2)


@pytest.mark.parametrize("code", [0, 1, 130])
def test_what_a_command_ends_with_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    @click.command()
    def ends() -> None:
        raise click.exceptions.Exit(code)

    monkeypatch.setattr(cli, "get_command", lambda _context, _name: ends)
    monkeypatch.setattr(sys, "argv", ["agent", "ends"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0) == code


def test_a_command_is_imported_when_it_is_called() -> None:
    code = "import sys, agent.cli; print(*[m for m in sys.modules if m.startswith('agent.cli.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["agent.cli.lazily"]


@pytest.mark.parametrize(("path", "command"), commands(cli), ids=lambda v: str(v)[:24])
def test_every_command_and_option_is_explained(path: str, command: click.Command) -> None:
    assert command.help, path
    assert command.help.rstrip().endswith((".", ".fish")), path
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{path} {parameter.name}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "never"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_ages(seconds: float | None, words: str) -> None:
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    context, parameter = click.Context(cli), click.Option(["--ttl"])
    assert common.duration(context, parameter, text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "0h", "-1h", "1.5h", "5w", "٣h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no duration"):
        common.duration(click.Context(cli), click.Option(["--ttl"]), text)
