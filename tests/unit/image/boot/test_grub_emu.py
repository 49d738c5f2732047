"""GRUB itself runs the script, from the boot partition of an image of ours, where grub-emu is.

So what is tested is also that GRUB finds our partitions, reads our FAT, and writes a block, in its
place and byte for byte, as the core does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from image.disk import bootfiles
from image.disk.layout import MIB, Sizes
from image.disk.write import write
from image.node.envblock import BLOCK_BYTES
from image.node.slotblocks import encode, following, fresh, latest
from image.node.slots import Bad, Empty, Good, Slot, State, Trial, boot

pytestmark = pytest.mark.skipif(
    shutil.which("grub-emu") is None or not bootfiles.available(),
    reason="no grub-emu, dosfstools or mtools",
)
SCRIPT = Path(__file__).parents[4] / "image" / "boot" / "slots.cfg"
CONFIG = """
set store="(hd0,gpt2)/grub"
function covey_load { [ -f "(hd0,gpt2)/readable_$slot" ]; }
function covey_start { echo "boots <$slot>"; exit; }
source $store/slots.cfg
echo "boots <none>"
exit
"""
GARBAGE = b"\xa5" * BLOCK_BYTES


class Machine:
    """An image that GRUB boots from, with both blocks in it."""

    def __init__(self, folder: Path, zero: bytes, one: bytes, readable: str = "ab") -> None:
        self.folder = folder
        (folder / "slots0").write_bytes(zero)
        (folder / "slots1").write_bytes(one)
        files = {"grub/slots0.env": folder / "slots0", "grub/slots1.env": folder / "slots1"}
        files |= {f"readable_{slot}": folder / "slots0" for slot in readable}
        files["grub/slots.cfg"] = SCRIPT
        bootfiles.make(folder / "boot.img", 33 * MIB, files, 1_700_000_000)
        self.image = folder / "covey.img"
        sizes = Sizes(33 * MIB, MIB, MIB)
        table = write(self.image, "x86_64", sizes, {"boot": folder / "boot.img"})
        self.boot_at = table.partitions[1].first * 512
        (folder / "grub").mkdir()
        (folder / "grub" / "grub.cfg").write_text(CONFIG)
        (folder / "device.map").write_text(f"(hd0) {self.image}\n")

    def start(self) -> str:
        command = ["grub-emu", "-m", self.folder / "device.map", "-r", "host"]
        done = subprocess.run(
            [*command, "-d", self.folder / "grub"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        found = re.findall("boots <(.*?)>", done.stdout)
        assert len(found) == 1, done.stdout + done.stderr
        return found[0]

    def blocks(self) -> tuple[bytes, bytes]:
        found = [
            subprocess.run(
                ["mtype", "-i", f"{self.image}@@{self.boot_at}", f"::grub/slots{index}.env"],
                env={**os.environ, "MTOOLS_SKIP_CHECK": "1"}, check=True, stdout=subprocess.PIPE,
            ).stdout
            for index in range(2)
        ]  # fmt: skip
        return found[0], found[1]


def expected(blocks: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], Slot | None]:
    """Return what the core makes of the blocks, and which slot it boots."""
    stored = latest(blocks)
    state, slot = boot(stored.state)
    if state == stored.state:
        return blocks, slot
    index, block = following(stored, state)
    return (block, blocks[1]) if index == 0 else (blocks[0], block), slot


def test_an_update_that_never_comes_up(tmp_path: Path) -> None:
    blocks = (encode(State("a", Good(), Empty()), 0), encode(State("b", Good(), Trial()), 1))
    machine = Machine(tmp_path, *blocks)
    for _ in range(5):
        blocks, slot = expected(blocks)
        assert machine.start() == slot
        assert machine.blocks() == blocks
    assert slot == "a"
    assert latest(blocks).state == State("b", Good(), Bad("tries"))


def test_a_fresh_disk(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *fresh(State()))
    assert machine.start() == "a"
    assert machine.blocks() == fresh(State())


def test_a_slot_that_cannot_be_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *fresh(State("b", Good(), Trial())), readable="a")
    assert machine.start() == "a"
    assert latest(machine.blocks()).state == State("b", Good(), Bad("unreadable"))


@pytest.mark.parametrize("damaged", [GARBAGE, encode(State(), 2)[:70] + GARBAGE[70:]])
def test_a_damaged_block_stops_no_boot(tmp_path: Path, damaged: bytes) -> None:
    """GRUB may or may not be able to write to it; what boots is good, or has a try less."""
    whole = encode(State("b", Good(), Trial(2)), 1)
    machine = Machine(tmp_path, damaged, whole)
    slot = machine.start()
    after = latest(machine.blocks()).state
    assert (slot, after) in (
        ("a", State("b", Good(), Trial(2))),
        ("b", State("b", Good(), Trial(1))),
    )
    assert machine.blocks()[1] == whole


def test_two_damaged_blocks(tmp_path: Path) -> None:
    assert Machine(tmp_path, GARBAGE, GARBAGE, readable="b").start() == "b"
