"""Updates of a real appliance: taken, taken back, refused, and cut at random moments.

The machines are in no mesh, but for the one whose agent crashes, and are updated over HTTP from
here. Trials are shortened on the kernel's command line, where a person could, too.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from appliance import Appliance
from shell import Shell, arguments
from test_image import START_S, build
from variants import Variants, crash_loops, panics

from image.make import signing
from image.node.slots import Bad, Empty, Good, State, Trial

pytestmark = pytest.mark.timeout(7200)
# This machine, as QEMU's NAT shows it.
_HOST = "10.0.2.2"
# It may take that long on a machine with two busy cores.
_UPDATE_S = 900.0
_COMMAND_S = 120.0
CUTS = int(os.environ.get("COVEY_TEST_CUTS", "20"))
SEED = int(os.environ.get("COVEY_TEST_SEED", "8"))


@dataclass(frozen=True)
class Made:
    """An image of version 0.1.0, and the updates to it, which lie at `url`."""

    image: Path
    url: str

    def address(self, name: str) -> str:
        return f"{self.url}/{name}.update"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("updates")
    public_file = signing.new_key(folder / "ours")
    signing.new_key(folder / "other")
    key, public = signing.read_key(folder / "ours"), signing.read_public(public_file)
    plain = folder / "plain.img"
    if not (given := os.environ.get("COVEY_TEST_IMAGE")):
        build(plain)
    variants = Variants(Path(given or plain), folder, key, public)
    image = variants.image("base", "0.1.0")
    good = variants.image("good-image", "0.2.0")
    signing.make_update(good, key, folder / "good.update")
    signing.make_update(good, signing.read_key(folder / "other"), folder / "others.update")
    good.unlink()
    variants.update("panics", "0.2.1", panics)
    variants.update("crashes", "0.2.2", crash_loops)
    served = folder / "served"
    served.mkdir()
    for path in folder.glob("*.update"):
        path.rename(served / path.name)
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Made(image, f"http://{_HOST}:{server.server_port}")
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
    menu = machine.read("covey/grub.cfg").decode()
    assert "covey.slot=$slot" in menu
    menu = menu.replace("covey.slot=$slot", f"covey.slot=$slot covey.trial={trial}")
    machine.write("covey/grub.cfg", menu.replace("set timeout=2", "set timeout=0"))
    return machine


def status(shell: Shell) -> dict[str, Any]:
    said = shell.run("agent update --status --json", _COMMAND_S)
    found = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
    assert isinstance(found, dict)
    return found


def started(machine: Appliance, number: int, text: str, timeout_s: float = START_S) -> None:
    """Wait until the start with this number, from 1 on, has shown a text."""
    until = time.monotonic() + timeout_s
    while text not in "".join(machine.console().split("Covey starts from ")[number : number + 1]):
        assert time.monotonic() < until, f"start {number} without {text!r}: {machine.console()}"
        time.sleep(0.5)


def test_a_signed_update_is_taken_tried_and_good_and_others_are_refused(
    made: Made, tmp_path: Path
) -> None:
    machine = appliance(made, tmp_path, "20:600")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        assert status(shell)["version"] == "0.1.0"
        said = shell.run(f"! agent update {made.address('others')}", _UPDATE_S)
        assert "not signed by a key that this machine trusts" in said
        assert status(shell)["last_error"].startswith("the update is not signed by a key")
        assert machine.slots() == State()
        began = time.monotonic()
        shell.run(f"agent update --no-restart {made.address('good')}", _UPDATE_S)
        print(f"an update was written within {time.monotonic() - began:.0f} s")
        assert status(shell)["next"] == "b"
        assert machine.slots() == State("b", Good(), Trial(3))
        shell.send("reboot")
        started(machine, 2, "Covey 0.2.0, slot b:")
        began = time.monotonic()
        while machine.slots().b != Good():
            assert time.monotonic() - began < START_S, machine.console()
            time.sleep(1)
        print(f"it was good {time.monotonic() - began:.0f} s after its screen")
        found = status(shell)
        assert (found["version"], found["slot"], found["trial"]) == ("0.2.0", "b", None)
        again = shell.run(f"! agent update {made.address('good')}", _UPDATE_S)
        assert "not newer than 0.2.0" in again
        # Back by hand, and then a reset: the version stays, and the data goes.
        shell.run("touch /data/mark; sync", _COMMAND_S)
        shell.send("agent update --back")
        started(machine, 3, "Covey 0.1.0, slot a:")
        shell.run("test -e /data/mark", _COMMAND_S)
        shell.send("agent factory-reset --yes")
        started(machine, 4, "Covey 0.1.0, slot a:")
        shell.run("test ! -e /data/mark", _COMMAND_S)
        assert machine.slots() == State("a", Good(), Good())


def test_a_kernel_that_panics_is_taken_back(made: Made, tmp_path: Path) -> None:
    machine = appliance(made, tmp_path, "20:600")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        shell.send(f"agent update {made.address('panics')}")
        started(machine, 2, "slot b", _UPDATE_S)
        why = "version 0.2.1 in slot b did not come up in 3 tries"
        started(machine, 5, f"The update was taken back: {why}", 2 * START_S)
        assert status(shell)["why_not"].startswith(why)
    assert machine.console().count("Covey starts from slot b") == 3
    assert machine.slots() == State("b", Good(), Bad("tries"))


def test_an_agent_that_crashes_again_and_again_is_taken_back(made: Made, tmp_path: Path) -> None:
    machine = appliance(made, tmp_path, "20:30")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        shell.run("agent mesh create home", _COMMAND_S)
        shell.run("rc-service covey-agent restart", _COMMAND_S)
        started(machine, 1, "Mesh: home,")
        shell.send(f"agent update {made.address('crashes')}")
        started(machine, 2, "Covey 0.2.2, slot b:", _UPDATE_S)
        why = "version 0.2.2 in slot b came up, but did not stay healthy in 3 tries"
        started(machine, 5, f"The update was taken back: {why}", 3 * START_S)
        started(machine, 5, "Mesh: home,")
        assert status(shell)["why_not"].startswith(why)
    assert machine.slots() == State("b", Good(), Bad("unhealthy"))


def test_its_power_is_cut_at_random_moments_of_an_update(made: Made, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    machine = appliance(made, tmp_path, "20:600")
    update = f"agent update --no-restart {made.address('good')}"
    with on(machine, tmp_path) as shell:
        machine.wait_for("Covey 0.1.0, slot a:", START_S)
        shell.run("sync", _COMMAND_S)
    machine.keep(tmp_path / "ready")
    with on(machine, tmp_path) as shell:
        machine.wait_for("Covey 0.1.0, slot a:", START_S)
        began = time.monotonic()
        shell.run(update, _UPDATE_S)
        took_s = time.monotonic() - began
    machine.restore(tmp_path / "ready")
    cut_s: list[float] = []
    seen: list[State] = []
    while len(seen) < CUTS:
        with on(machine, tmp_path) as shell:
            # The power was cut, and it starts all the same: what ran, or what was whole.
            machine.wait_for("Covey 0.", START_S)
            state, slot_b = machine.slots(), "Covey starts from slot b" in machine.console()
            if len(cut_s) > len(seen):
                print(f"{cut_s[-1]:.1f} of {took_s:.0f} s: {state}", flush=True)
                seen.append(state)
                assert state.a == Good()
                assert isinstance(state.b, Trial | Good) == slot_b, machine.console()
                assert ("Covey 0.2.0, slot b:" in machine.console()) == slot_b
            if not slot_b:
                shell.send(update)
                cut_s.append(chance.uniform(0, 1.1 * took_s))
                time.sleep(cut_s[-1])
            machine.cut()
        if slot_b:
            machine.restore(tmp_path / "ready")
    assert Empty() in [state.b for state in seen]
