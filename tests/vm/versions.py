"""Versions of the appliance for the tests of updates, and machines on which they are tried.

An image of 0.1.0, signed, and updates to it, at a URL that a machine behind QEMU's NAT reaches.
COVEY_TEST_IMAGE names an image that image/build made, if there is one already. Trials are shortened
on the kernel's command line, where a person could, too. Used by conftest.py and the tests.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import Appliance
from imagebuild import build
from shell import Shell, arguments
from variants import Edit, Variants, crash_loops, panics

from image.make import signing
from image.node.slots import Good, Slot

# Emulated on two cores a start takes half a minute; a machine with other work takes longer.
START_S = 600.0
# It may take that long on a machine with two busy cores.
UPDATE_S = 900.0
COMMAND_S = 120.0
# This machine, as QEMU's NAT shows it.
_HOST = "10.0.2.2"


# Made when a test first wants them.
_BROKEN: dict[str, tuple[str, Edit]] = {
    "panics": ("0.2.1", panics),
    "crashes": ("0.2.2", crash_loops),
}


@dataclass(frozen=True)
class Made:
    """An image of version 0.1.0, signed, and the updates to it, which lie in `folder` and at `url`.

    base.update is to the image's own version.
    """

    image: Path
    folder: Path
    url: str
    variants: Variants

    def address(self, name: str) -> str:
        file = self.folder / f"{name}.update"
        if not file.exists():
            self.variants.update(name, *_BROKEN[name]).rename(file)
        return f"{self.url}/{file.name}"


@contextmanager
def make(folder: Path) -> Iterator[Made]:
    """Make them in a folder, and serve the updates."""
    public_file = signing.new_key(folder / "ours")
    signing.new_key(folder / "other")
    key, public = signing.read_key(folder / "ours"), signing.read_public(public_file)
    plain = folder / "plain.img"
    if not (given := os.environ.get("COVEY_TEST_IMAGE")):
        build(plain, "--plain")
    served = folder / "served"
    served.mkdir()
    variants = Variants(Path(given or plain), folder, key, public)
    image = variants.image("base", "0.1.0")
    signing.leave(image, signing.make_update(image, key, served / "base.update")[0])
    newer = variants.image("newer", "0.2.0")
    signing.make_update(newer, key, served / "good.update")
    signing.make_update(newer, signing.read_key(folder / "other"), served / "others.update")
    newer.unlink()
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Made(image, served, f"http://{_HOST}:{server.server_port}", variants)
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def on(machine: Appliance, folder: Path) -> Iterator[Shell]:
    """Start it and speak with its shell."""
    path = folder / "shell"
    path.unlink(missing_ok=True)
    with machine.running(devices=arguments(path)):
        while not path.exists():
            time.sleep(0.1)
        shell = Shell(path)
        try:
            yield shell
        finally:
            shell.close()


def appliance(made: Made, folder: Path, trial: str) -> Appliance:
    """Return a machine with version 0.1.0, which has not been started, and its trials' times."""
    machine = Appliance(made.image, folder)
    edit_menu(machine, {"covey.slot=$slot": f"covey.slot=$slot covey.trial={trial}",
                        "set timeout=2": "set timeout=0"})  # fmt: skip
    return machine


def edit_menu(machine: Appliance, changes: Mapping[str, str]) -> None:
    """Change its grub.cfg, as a person does in another computer: text by text."""
    menu = machine.read("covey/grub.cfg").decode()
    for old, new in changes.items():
        assert old in menu
        menu = menu.replace(old, new)
    machine.write("covey/grub.cfg", menu)


def asked(shell: Shell, words: str) -> dict[str, Any]:
    """Return what `agent WORDS --json` prints on a machine."""
    said = shell.run(f"agent {words} --json", COMMAND_S)
    found = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
    assert isinstance(found, dict)
    return found


def status(shell: Shell) -> dict[str, Any]:
    return asked(shell, "update --status")


def good(machine: Appliance, slot: Slot) -> None:
    """Wait until a slot has proved itself."""
    until = time.monotonic() + START_S
    while machine.slots().of(slot) != Good():
        assert time.monotonic() < until, f"slot {slot} is not good: {machine.console()}"
        time.sleep(1)


def started(machine: Appliance, number: int, text: str, timeout_s: float = START_S) -> None:
    """Wait until the start with this number, from 1 on, has shown a text."""
    until = time.monotonic() + timeout_s
    while text not in "".join(machine.console().split("Covey starts from ")[number : number + 1]):
        assert time.monotonic() < until, f"start {number} without {text!r}: {machine.console()}"
        time.sleep(0.5)
