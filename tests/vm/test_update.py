"""Updates of a real appliance: taken, taken back, refused, and cut at random moments.

The machines are in no mesh, but for the one whose agent crashes, and are updated over HTTP from
here.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from versions import COMMAND_S, START_S, UPDATE_S, Made, appliance, good, on, started, status

from image.node.slots import Bad, Empty, Good, State, Trial

pytestmark = pytest.mark.timeout(7200)
CUTS = int(os.environ.get("COVEY_TEST_CUTS", "20"))
SEED = int(os.environ.get("COVEY_TEST_SEED", "8"))


def test_a_signed_update_is_taken_tried_and_good_and_others_are_refused(
    made: Made, tmp_path: Path
) -> None:
    machine = appliance(made, tmp_path, "20:600")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        assert status(shell)["version"] == "0.1.0"
        said = shell.run(f"! agent update {made.address('others')}", UPDATE_S)
        assert "not signed by a key that this machine trusts" in said
        assert status(shell)["last_error"].startswith("the update is not signed by a key")
        assert machine.slots() == State()
        began = time.monotonic()
        shell.run(f"agent update --no-restart {made.address('good')}", UPDATE_S)
        print(f"an update was written within {time.monotonic() - began:.0f} s")
        assert status(shell)["next"] == "b"
        assert machine.slots() == State("b", Good(), Trial(3))
        shell.send("reboot")
        started(machine, 2, "Covey 0.2.0, slot b:")
        began = time.monotonic()
        good(machine, "b")
        print(f"it was good {time.monotonic() - began:.0f} s after its screen")
        found = status(shell)
        assert (found["version"], found["slot"], found["trial"]) == ("0.2.0", "b", None)
        again = shell.run(f"! agent update {made.address('good')}", UPDATE_S)
        assert "not newer than 0.2.0" in again
        # Back by hand, and then a reset: the version stays, and the data goes.
        shell.run("touch /data/mark; sync", COMMAND_S)
        shell.send("agent update --back")
        started(machine, 3, "Covey 0.1.0, slot a:")
        shell.run("test -e /data/mark", COMMAND_S)
        shell.send("agent factory-reset --yes")
        started(machine, 4, "Covey 0.1.0, slot a:")
        shell.run("test ! -e /data/mark", COMMAND_S)
        assert machine.slots() == State("a", Good(), Good())


def test_a_kernel_that_panics_is_taken_back(made: Made, tmp_path: Path) -> None:
    machine = appliance(made, tmp_path, "20:600")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        shell.send(f"agent update {made.address('panics')}")
        started(machine, 2, "slot b", UPDATE_S)
        why = "version 0.2.1 in slot b did not come up in 3 tries"
        started(machine, 5, f"The update was taken back: {why}", 2 * START_S)
        assert status(shell)["why_not"].startswith(why)
    assert machine.console().count("Covey starts from slot b") == 3
    assert machine.slots() == State("b", Good(), Bad("tries"))


def test_an_agent_that_crashes_again_and_again_is_taken_back(made: Made, tmp_path: Path) -> None:
    machine = appliance(made, tmp_path, "20:30")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        shell.run("agent mesh create home", COMMAND_S)
        shell.run("rc-service covey-agent restart", COMMAND_S)
        started(machine, 1, "Mesh: home,")
        shell.send(f"agent update {made.address('crashes')}")
        started(machine, 2, "Covey 0.2.2, slot b:", UPDATE_S)
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
        shell.run("sync", COMMAND_S)
    machine.keep(tmp_path / "ready")
    with on(machine, tmp_path) as shell:
        machine.wait_for("Covey 0.1.0, slot a:", START_S)
        began = time.monotonic()
        shell.run(update, UPDATE_S)
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
