"""The appliance for a Raspberry Pi: from U-Boot on it starts as every other machine does."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagebuild import build
from raspberrypi import RaspberryPi
from test_image import START_S, waits_for_a_ticket

from image.make.signing import EPOCH_S
from image.node.slots import Good, State, Trial

# llama.cpp is compiled first, once; and QEMU's card is slow.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raspberrypi") / "covey.img"
    build(out, "--arch", "aarch64", "--flavour", "raspberrypi", "--plain")
    return out


def test_it_starts_and_waits_for_a_ticket(plain: Path, tmp_path: Path) -> None:
    machine = RaspberryPi(plain, tmp_path)
    waits_for_a_ticket(machine, "U-Boot", "its own", "none; is a cable in?")
    # It has no clock, and is no older than its image all the same.
    assert machine.data_made_s() >= EPOCH_S


def test_what_grub_counts_is_written_by_uboot(plain: Path, tmp_path: Path) -> None:
    machine = RaspberryPi(plain, tmp_path)
    machine.has_both(State("b", Good(), Trial(1), reset=True))
    with machine.running():
        # It is written before that is shown.
        machine.wait_for("Covey starts from slot b", START_S)
    assert machine.slots() == State("b", Good(), Trial(0), reset=True)
