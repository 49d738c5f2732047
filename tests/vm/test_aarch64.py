"""The appliance for aarch64: built on this machine, it starts from UEFI, joins and answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from answered import check, run
from appliance import Appliance
from imagebuild import build
from test_image import START_S, waits_for_a_ticket

from image.node.slots import Bad, Good, State, Trial

# llama.cpp is compiled first, once: on two cores a quarter of an hour.
pytestmark = pytest.mark.timeout(3600)
# What is plain asks for ARMv8.0, which is all that this one has; "max" is what QEMU can do.
CPU = "cortex-a72"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aarch64") / "covey.img"
    build(out, "--arch", "aarch64", "--plain")
    return out


def test_it_starts_and_waits_for_a_ticket(plain: Path, tmp_path: Path) -> None:
    waits_for_a_ticket(Appliance(plain, tmp_path, arch="aarch64"), "uefi", CPU)


def test_grub_counts_an_updates_tries_and_goes_back(plain: Path, tmp_path: Path) -> None:
    machine = Appliance(plain, tmp_path, arch="aarch64")
    machine.has_both(State("b", Good(), Trial(1), reset=True))
    with machine.running(cpu=CPU):
        # It is written before that is shown.
        machine.wait_for("Covey starts from slot b", START_S)
    assert machine.slots() == State("b", Good(), Trial(0), reset=True)
    with machine.running(cpu=CPU):
        machine.wait_for("in slot b did not come up in 3 tries", START_S)
        assert "Covey starts from slot a" in machine.console()
    assert machine.slots() == State("b", Good(), Bad("tries"))


@pytest.mark.parametrize("cpu", [CPU, "max"])
def test_it_joins_and_answers(plain: Path, tmp_path: Path, expected: str, cpu: str) -> None:
    check(run(plain, tmp_path, 1, cpu, "aarch64"), 1, expected)
