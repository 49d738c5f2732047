"""A newcomer's way by the README, timed: from a clone to a chat in the browser.

    python tests/bench/newcomer.py [--quick] [--json FILE] [--pictures FOLDER]

Clones the tree's last commit, has `make demo` do all the set-up and answer, and then does by hand
what the README says, with the clone's own commands, on two machines and a notebook that are network
namespaces: a mesh, two tickets, a model over two machines, a gateway; at the notebook Debian's
Chromium opens its root and asks. llama.cpp comes from the cache if it was built here before.
--quick leaves out clone and `make demo`, and uses this tree.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright
from report import Row, conditions, finish, parser, row

from agent.demo import sandbox
from agent.demo.mesh import AgentLab
from agent.demo.netlab import Lan

TREE = Path(__file__).parents[2]
LAN = 88
KITCHEN, GARAGE, NOTEBOOK = MACHINES = ("kitchen", "garage", "notebook")
GATEWAY_PORT = 8088
QUESTION, ANSWER = "What is 27 + 15?", "42"
LIMIT_S = 1800.0
_TICKET = re.compile(r"covey1\S+")


class Walk:
    """Does one thing after the other, and notes how long each took."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        print(f"{took:8.1f} s  {name}", file=sys.stderr, flush=True)
        self.rows.append(row(name, took, "s"))

    def total(self) -> list[Row]:
        """Return the steps, and all of them together."""
        seconds = sum(float(step["value"]) for step in self.rows)
        return [*self.rows, row("from nothing to a chat in the browser", seconds, "s", goal=600.0)]


class Machines:
    """The three, on one LAN, where commands of a tree's virtual environment are typed."""

    def __init__(self, root: Path, tree: Path) -> None:
        lan = Lan(LAN)
        self._lab = AgentLab(root, lan)
        self._tree = tree
        self._gateway: subprocess.Popen[bytes] | None = None
        for name in MACHINES:
            lan.add(name)

    def type(self, name: str, command: str) -> str:
        """Do it and return what it printed; ends the bench where it fails."""
        done = self._lab.machine(name).run(
            ["bash", "-ec", command], env=self._environment(name), timeout_s=300
        )
        if done.returncode != 0:
            raise SystemExit(f"{name}$ {command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def serve(self) -> None:
        """Start the gateway on the notebook, and wait until it listens."""
        notebook = self._lab.machine(NOTEBOOK)
        self._gateway = notebook.spawn(["gateway", "serve"], env=self._environment(NOTEBOOK))
        while f":{GATEWAY_PORT} " not in notebook.run(["ss", "-ltnH"]).stdout:
            if self._gateway.poll() is not None:
                raise SystemExit("the gateway has ended")
            time.sleep(0.1)

    def browser(self, folder: Path) -> Path:
        """Return a program that is Chromium on the notebook."""
        program = shutil.which("chromium")
        if program is None:
            raise SystemExit("Debian's chromium is not installed: `make browser` installs it")
        wrapper = folder / "chromium"
        command = " ".join(self._lab.machine(NOTEBOOK).command([program]))
        wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper

    def close(self) -> None:
        """End what was started."""
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait(60)
        for name in MACHINES:
            self._lab.try_agent(name, "down")

    def _environment(self, name: str) -> dict[str, str]:
        path = f"{self._tree / '.venv/bin'}:{os.environ['PATH']}"
        socket = str(self._lab.socket(name))
        return {**self._lab.environment(name), "PATH": path, "COVEY_GATEWAY_SOCKET": socket}


def by_hand(walk: Walk, machines: Machines, folder: Path, pictures: Path | None) -> None:
    """Do what the README says under "Your own machines"."""
    with walk.step("agent mesh create, agent up"):
        machines.type(KITCHEN, "agent mesh create home; agent up")
    with walk.step("agent invite, agent join on the second machine"):
        machines.type(GARAGE, f"agent join {ticket(machines, '')}")
    with walk.step("the same for the gateway's"):
        machines.type(NOTEBOOK, f"agent join {ticket(machines, '--role gateway')}")
    with walk.step("agent plan"):
        machines.type(KITCHEN, "agent plan covey-mini")
    with walk.step("agent deploy --nodes 2"):
        machines.type(KITCHEN, "agent deploy covey-mini --nodes 2")
    with walk.step("gateway serve"):
        machines.serve()
    with sync_playwright() as playwright:
        with walk.step("the dashboard in the browser, the ring in its picture"):
            browser = playwright.chromium.launch(
                executable_path=str(machines.browser(folder)),
                env={**os.environ, "HOME": str(folder)}, args=["--no-sandbox"],
            )  # fmt: skip
            page = browser.new_page(viewport={"width": 1100, "height": 820})
            page.set_default_timeout(60_000)
            page.goto(f"http://127.0.0.1:{GATEWAY_PORT}/")
            expect(page.locator("#link")).to_have_attribute("data-state", "live", timeout=60_000)
        picture(page, pictures, "newcomer-mesh")
        with walk.step("a question in its chat, answered"):
            page.goto(f"http://127.0.0.1:{GATEWAY_PORT}/dashboard/#chat")
            expect(page.locator("#chat-model option")).to_have_text(["covey-mini"], timeout=60_000)
            page.fill("#chat-text", QUESTION)
            page.press("#chat-text", "Enter")
            expect(page.locator("#chat-log li.assistant")).to_contain_text(ANSWER, timeout=60_000)
            expect(page.locator("#chat-send")).to_have_text("Send", timeout=60_000)
        picture(page, pictures, "newcomer-chat")
        browser.close()


def ticket(machines: Machines, words: str) -> str:
    """Return a ticket of the first machine's."""
    found = _TICKET.search(machines.type(KITCHEN, f"agent invite {words}"))
    assert found is not None
    return found.group()


def picture(page: Page, pictures: Path | None, name: str) -> None:
    """Take a picture of what the browser shows, where pictures are wanted."""
    if pictures is not None:
        page.screenshot(path=pictures / f"{name}.png", animations="disabled")


def set_up(walk: Walk, tree: Path) -> None:
    """Do what the README says first, on the machine itself, which has a network."""
    with walk.step("git clone"):
        subprocess.run(["git", "clone", "-q", TREE, tree], check=True)
    with walk.step("make demo: set-up, three nodes and a gateway, two answers"):
        subprocess.run(["make", "demo"], cwd=tree, check=True, timeout=LIMIT_S, stdout=sys.stderr)


def main() -> int:
    """Measure, print the table, write the JSON."""
    flags = parser(__doc__)
    flags.add_argument("--pictures", type=Path, help="a folder for two screenshots")
    # In the sandbox, where the rest is done: a folder with the clone and the rows so far.
    flags.add_argument("--begun", type=Path, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    walk = Walk()
    if arguments.begun is None:
        with tempfile.TemporaryDirectory(prefix="covey-newcomer-") as name:
            if not arguments.quick:
                set_up(walk, Path(name) / "covey")
            (Path(name) / "rows").write_text(json.dumps(walk.rows))
            return sandbox.run([sys.executable, *sys.argv, "--begun", name])
    folder: Path = arguments.begun
    walk.rows = json.loads((folder / "rows").read_text())
    machines = Machines(folder / "machines", TREE if arguments.quick else folder / "covey")
    try:
        by_hand(walk, machines, folder, arguments.pictures)
    finally:
        machines.close()
    said = "this tree" if arguments.quick else "a clone; llama.cpp's wheel from the cache, if there"
    finish("newcomer", conditions(tree=said), walk.total(), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
