"""Types what a document says on the machines of a lab, block by block, as it stands.

A block that begins with "```sh on=NAME" is typed on the machine NAME; one with "stays" goes on
there while others are typed, as in a terminal that is left open, and one with "fails=CODE" ends
with that exit code. A block of "```text" behind it is what it prints, "…" for whatever.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from agent.demo.mesh import AgentLab
from agent.demo.netlab import Machine

TREE = Path(__file__).parents[2]
TICKET = re.compile(r"covey1\S+")
PATIENCE_S = 60.0
# Of what stays in its terminal.
GATEWAY_PORT = 8088


class Block(NamedTuple):
    """A block that names a machine; `shown`: what it prints, "" where that is not told."""

    language: str
    words: set[str]
    text: str
    shown: str = ""

    @property
    def fails(self) -> int:
        """The exit code that it ends with."""
        codes = [word.removeprefix("fails=") for word in self.words if word.startswith("fails=")]
        return int(codes[0]) if codes else 0


def blocks(document: str) -> list[Block]:
    """Return a document's blocks that name a machine."""
    found: list[Block] = []
    for token in MarkdownIt().parse((TREE / "docs" / document).read_text()):
        if token.type == "fence" and "on=" in token.info:
            language, *words = token.info.split()
            found.append(Block(language, set(words), token.content))
        elif token.type == "fence" and token.info == "text" and found:
            found[-1] = found[-1]._replace(shown=token.content)
    return found


def is_shown(shown: str, said: str) -> bool:
    """Say whether a document shows what was said."""
    parts = map(re.escape, shown.strip().split("…"))
    return re.fullmatch(".*".join(parts), said.strip(), re.DOTALL) is not None


class Typist:
    """Types on machines, and keeps what each printed."""

    def __init__(self, lab: AgentLab) -> None:
        self.lab = lab
        self.ticket = ""
        self.said: list[str] = []
        self.stays: list[subprocess.Popen[bytes]] = []

    def machine(self, words: set[str]) -> Machine:
        (name,) = [word.removeprefix("on=") for word in words if word.startswith("on=")]
        return self.lab.machine(name)

    def environment(self, machine: Machine) -> dict[str, str]:
        """As on a machine where Covey's virtual environment is active."""
        found = self.lab.environment(machine.name)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        socket = str(self.lab.socket(machine.name))
        store = str(self.lab.socket(machine.name).with_name("gateway.db"))
        return {
            **found, "PATH": path, "COVEY_GATEWAY_SOCKET": socket, "COVEY_GATEWAY_STORE": store,
        }  # fmt: skip

    def type(self, block: Block) -> None:
        """Do what a block says; one that stays goes on while others are typed."""
        language, words, text, shown = block
        machine = self.machine(words)
        env = self.environment(machine)
        if self.ticket:
            text = TICKET.sub(self.ticket, text)
        if "stays" in words:
            self.stays.append(machine.spawn(["bash", "-ec", f"exec {text}"], env=env))
            self._wait_for_port(machine, GATEWAY_PORT)
            return
        command = {"sh": ["bash", "-ec", text], "python": [sys.executable, "-c", text]}[language]
        done = machine.run(command, env=env, timeout_s=180)
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == block.fails, f"{text}\n{said}"
        assert not shown or is_shown(shown, said), f"{text}\n{said}"
        self.said.append(done.stdout)
        if found := TICKET.search(done.stdout):
            self.ticket = found.group()

    def _wait_for_port(self, machine: Machine, port: int) -> None:
        """Wait, as a person does, until what stays says that it is there."""
        deadline = time.monotonic() + PATIENCE_S
        while f":{port} " not in machine.run(["ss", "-ltnH"]).stdout:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)

    def close(self) -> None:
        for process in self.stays:
            process.terminate()
            process.wait(20)
