"""Types what a document says on the machines of a lab, block by block, as it stands.

A block that begins with "```sh on=NAME" is typed on the machine NAME; one with "stays" goes on
there while others are typed, as in a terminal that is left open.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from markdown_it import MarkdownIt

from agent.demo.mesh import AgentLab
from agent.demo.netlab import Machine

TREE = Path(__file__).parents[2]
TICKET = re.compile(r"covey1\S+")
PATIENCE_S = 60.0


def blocks(document: str) -> list[tuple[str, set[str], str]]:
    """Return each block that names a machine: its language, its words, its text."""
    return [
        (token.info.split()[0], set(token.info.split()[1:]), token.content)
        for token in MarkdownIt().parse((TREE / "docs" / document).read_text())
        if token.type == "fence" and "on=" in token.info
    ]


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
        return {**found, "PATH": path, "COVEY_GATEWAY_SOCKET": socket}

    def type(self, language: str, words: set[str], text: str) -> None:
        """Do what a block says; one that stays goes on while others are typed."""
        machine = self.machine(words)
        env = self.environment(machine)
        if self.ticket:
            text = TICKET.sub(self.ticket, text)
        if "stays" in words:
            self.stays.append(machine.spawn(["bash", "-ec", f"exec {text}"], env=env))
            return
        command = {"sh": ["bash", "-ec", text], "python": [sys.executable, "-c", text]}[language]
        done = machine.run(command, env=env, timeout_s=180)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        self.said.append(done.stdout)
        if found := TICKET.search(done.stdout):
            self.ticket = found.group()

    def wait_for_port(self, machine: Machine, port: int) -> None:
        """Wait, as a person does, until what stays says that it is there."""
        deadline = time.monotonic() + PATIENCE_S
        while f":{port} " not in machine.run(["ss", "-ltnH"]).stdout:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)

    def close(self) -> None:
        for process in self.stays:
            process.terminate()
            process.wait(20)
