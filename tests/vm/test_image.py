"""The appliance's image: it is built without root, starts from BIOS and UEFI, and joins."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from appliance import Appliance
from imagebuild import ROOT, build

from image.disk.layout import MIB
from image.node.slots import State

# Emulated on two cores a start takes half a minute; a machine with other work takes longer.
START_S = 600.0
pytestmark = pytest.mark.timeout(1800)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_another_build_in_another_folder_gives_the_same_bytes(image: Path, tmp_path: Path) -> None:
    again = tmp_path / "a" / "longer" / "path" / "again.img"
    again.parent.mkdir(parents=True)
    build(again)
    assert digest(again) == digest(image)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_starts_and_waits_for_a_ticket(image: Path, tmp_path: Path, firmware: str) -> None:
    waits_for_a_ticket(Appliance(image, tmp_path), firmware)


def waits_for_a_ticket(
    machine: Appliance, firmware: str, cpu: str = "max", address: str = "10.0.2.15"
) -> None:
    """Start it for the first time, and look at what it shows and at its disk."""
    assert machine.slots() == State(reset=True)
    with machine.running(firmware, cpu):
        took_s = machine.wait_for("This machine is in no mesh yet", START_S)
        console = machine.console()
    print(f"waits for a ticket after {took_s:.0f} s, from {firmware} with the CPU {cpu}")
    assert f"Addresses: {address}" in console
    assert "ERROR" not in console
    # The data partition was made, as large as the disk, once.
    assert machine.slots() == State()
    assert machine.data_bytes - machine.data_ends_at() <= MIB


def test_a_mistake_is_shown_with_its_line_and_mended_at_the_next_start(
    image: Path, tmp_path: Path
) -> None:
    machine = Appliance(image, tmp_path)
    machine.write("covey.toml", '# Ours.\nname = "Shed 1"\n')
    with machine.running():
        machine.wait_for("    line 2, name: “Shed 1” cannot be a name", START_S)
    machine.write("covey.toml", 'name = "shed-1"\naddress = "10.0.2.77/24"\n')
    with machine.running():
        machine.wait_for("slot a: shed-1\n  Addresses: 10.0.2.77\n", START_S)


def test_it_joins_with_a_ticket_which_leaves_the_file_and_is_a_member_from_then_on(
    image: Path, tmp_path: Path
) -> None:
    script = [sys.executable, str(Path(__file__).with_name("join.py")), str(image), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "agent.demo.sandbox", "--", *script],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"joined after {found['took_s']:.0f} s, up again after {found['again_s']:.0f} s")
    assert found["file"] == '# Ours.\nname = "shed-1"\n'
    assert "shed-1" in json.dumps(found["members"])
