"""GRUB's menu, as a person uses it who sits at the serial line."""

from __future__ import annotations

from pathlib import Path

import pytest
from versions import COMMAND_S, START_S, UPDATE_S, Made, appliance, edit_menu, good, on, started

from image.node.slots import Good, State

# What a terminal sends.
_DOWN, _ENTER = b"\x1b[B", b"\r"


@pytest.mark.timeout(3600)
def test_a_factory_reset_loses_the_data_and_keeps_the_version(made: Made, tmp_path: Path) -> None:
    machine = appliance(made, tmp_path, "20:600")
    with on(machine, tmp_path) as shell:
        started(machine, 1, "Covey 0.1.0, slot a:")
        shell.run(f"agent update --no-restart {made.address('good')}", UPDATE_S)
        shell.send("reboot")
        started(machine, 2, "Covey 0.2.0, slot b:")
        good(machine, "b")
        shell.run("agent mesh create home", COMMAND_S)
        shell.run("test -e /data/covey/mesh.json && touch /data/mark && sync", COMMAND_S)
    # Longer than three seconds, for who has the menu drawn on a busy machine.
    edit_menu(machine, {"set timeout=0": "set timeout=600"})
    with on(machine, tmp_path) as shell:
        machine.wait_for("Factory reset: forget the mesh", START_S)
        machine.type(_DOWN)
        machine.wait_for("*Factory reset", START_S)
        machine.type(_ENTER)
        started(machine, 1, "Covey 0.2.0, slot b:")
        shell.run("test ! -e /data/mark && test ! -e /data/covey/mesh.json", COMMAND_S)
        machine.wait_for("This machine is in no mesh yet", START_S)
    assert machine.slots() == State("b", Good(), Good())
