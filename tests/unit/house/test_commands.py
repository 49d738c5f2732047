"""What holds for all commands: --json, exit codes, manual pages, and what the docs say of them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from agent import errors, exits
from agent.cli import cli as agent
from gateway import errors as gateway_errors
from gateway import exits as gateway_exits
from gateway.cli import main as gateway

ROOT = Path(__file__).parents[3]
MAN = ROOT / "docs" / "man"
DOC = (ROOT / "docs" / "commands.md").read_text()
# A story, scripts, and a server with --json-logs.
NO_DATA = {"agent demo", "agent completion", "gateway completion", "gateway serve"}


def walk(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(command, info_name=name, parent=parent)
    yield context.command_path, command
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from walk(found, each, context)


COMMANDS = {**dict(walk(agent, "agent")), **dict(walk(gateway, "gateway"))}
RUNNABLE = {path for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def table(heading: str) -> list[list[str]]:
    """Return the rows of all tables under a heading of docs/commands.md."""
    text = DOC.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("command", "code")]


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_what_prints_data_prints_it_as_json_too() -> None:
    without = {path for path in RUNNABLE if "--json" not in options(COMMANDS[path])}
    assert without == NO_DATA


def test_the_shape_of_each_answer_is_documented() -> None:
    rows = {command.strip("`"): fields for command, fields in table("JSON")}
    assert set(rows) == RUNNABLE - NO_DATA
    assert list(rows) == sorted(rows)


def test_every_gateway_command_and_option_is_explained() -> None:
    for path, command in COMMANDS.items():
        if path.startswith("gateway"):
            assert command.help, path
            assert command.help.rstrip().endswith((".", "fish")), path
            assert all(p.help for p in command.params if isinstance(p, click.Option)), path


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    rows = table("Exit codes")
    assert {int(row[0]): row[1] for row in rows if len(row) == 2} == exits.COMMON
    special: dict[str, dict[int, str]] = {}
    for command, code, text in (row for row in rows if len(row) == 3):
        special.setdefault(command.strip("`"), {})[int(code)] = text
    assert special == exits.SPECIAL
    assert set(special) <= RUNNABLE


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and hasattr(kind, "exit_code")


def test_each_error_has_a_code_of_the_table_and_both_programs_the_same() -> None:
    ours = {kind.__name__: kind.exit_code for kind in vars(errors).values() if is_error(kind)}
    theirs = {k.__name__: k.exit_code for k in vars(gateway_errors).values() if is_error(k)}
    assert set(ours.values()) | set(theirs.values()) <= set(exits.COMMON)
    assert {theirs[name] == ours[name] for name in set(ours) & set(theirs)} == {True}
    assert theirs["UsageFault"] == ours["UsageError"]
    assert (gateway_exits.INTERRUPTED, gateway_exits.NO_READER) == (
        exits.INTERRUPTED, exits.NO_READER,
    )  # fmt: skip
    extra = {code for codes in exits.SPECIAL.values() for code in codes}
    assert not (extra - {exits.FAULTY}) & set(exits.COMMON), "an answer looks like an error"


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    own = {"COVEY_CONFIG": os.devnull, "COVEY_NODE_STATE_DIR": str(tmp_path), "HOME": str(tmp_path),
           "PYTHONPATH": str(ROOT)}  # fmt: skip
    return kept | own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("agent config show", 0),
        ("agent dance", 2),
        ("agent config import", 2),
        ("agent status --set node.nmae=x", 3),
        ("agent config import /none", 3),
        ("agent bench --mesh http://127.0.0.1:9 --save /none/x", 5),
        ("agent join x", 6),
        ("agent bench --mesh http://127.0.0.1:9", 7),
        ("agent status", 10),
        ("gateway keys list", 0),
        ("gateway dance", 2),
        ("gateway usage --since nonsense", 2),
        ("gateway keys list --config /none", 5),
        ("gateway status --listen 127.0.0.1:9", 10),
    ],
)
def test_exit_codes_from_outside(tmp_path: Path, words: str, code: int) -> None:
    program, *arguments = words.split()
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], env=environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert bool(done.stderr) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["agent config sample", "gateway keys --help"])
def test_a_reader_that_leaves_is_no_mistake(tmp_path: Path, words: str) -> None:
    program, *arguments = words.split()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments], env=environment(tmp_path), stdout=write,
        stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (exits.NO_READER, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["agent up --join-from-stdin --foreground", "agent factory-reset"]
)
def test_ctrl_c_is_told_as_such(tmp_path: Path, words: str) -> None:
    """While a command waits for what is typed."""
    program, *arguments = words.split()
    with subprocess.Popen(
        [sys.executable, "-m", program, *arguments], env=environment(tmp_path), cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        waits = f"/proc/{process.pid}/wchan"
        deadline = time.monotonic() + 60
        while "pipe_read" not in Path(waits).read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == exits.INTERRUPTED


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man_generate", MAN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manual_pages_are_those_of_the_commands() -> None:
    made = generator().pages()
    kept = {path.name: path.read_text() for path in MAN.glob("*.1")}
    assert set(made) == set(kept), "run `make man`"
    assert [name for name, text in made.items() if kept[name] != text] == [], "run `make man`"
    assert set(made) == {f"{path.replace(' ', '-')}.1" for path in COMMANDS}


def test_each_manual_page_has_its_sections_and_all_options() -> None:
    for path, command in COMMANDS.items():
        page = (MAN / f"{path.replace(' ', '-')}.1").read_text()
        found = re.findall(r"^\.SH (.*)$", page, re.M)
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "FILES",
                        "ENVIRONMENT"):  # fmt: skip
            assert section in found, (path, section)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[0].replace("-", "\\-") in page, (path, parameter.name)
                if parameter.envvar:
                    assert str(parameter.envvar) in page.replace("\\", ""), path
        for code in exits.SPECIAL.get(path, {}):
            assert f".B {code}\n" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_man_shows_them_without_a_warning() -> None:
    pages = sorted(map(str, MAN.glob("*.1")))
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", *pages],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    # Bold is each letter twice, with a step back between.
    assert re.sub(".\b", "", done.stdout).count("\nEXIT STATUS\n") == len(pages)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_nothing_wrong() -> None:
    pages = sorted(map(str, MAN.glob("*.1")))
    said = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True,
        check=False,
    ).stdout  # fmt: skip
    # They have a version, and no date.
    assert [line for line in said.splitlines() if "missing date" not in line] == []
