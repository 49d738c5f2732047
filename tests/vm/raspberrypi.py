"""A Raspberry Pi 3 in QEMU with the appliance on its card; used by test_raspberrypi.py.

QEMU runs none of the firmware that comes before U-Boot, so it starts that itself, out of the image,
with the image's device tree; who reads config.txt and the MBR is left out. Its network is on USB,
and Linux does not get along with QEMU's: so it has none.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from appliance import Appliance

from image.disk.gpt import HEAD_BYTES, LINUX, SECTOR_BYTES, Partition, Table
from image.disk.layout import MIB

_UBOOT, _TREE = "u-boot.bin", "bcm2837-rpi-3-b.dtb"


class RaspberryPi(Appliance):
    """A Raspberry Pi 3 B with the image on its card."""

    # A power of two, as all cards that QEMU has.
    disk_bytes = 2 << 30
    # QEMU erases a card by a write for each sector, which takes minutes; so most of what the image
    # leaves has another one's partition.
    data_bytes = 1280 * MIB

    def __init__(self, image: Path, folder: Path) -> None:
        super().__init__(image, folder, arch="aarch64")
        for name in (_UBOOT, _TREE):
            (folder / name).write_bytes(self.read(name))
        # QEMU's watchdog does not count: it restarts the machine when it is started.
        menu = self.read("covey/grub.cfg").decode()
        assert " quiet " in menu
        watchdog = "modprobe.blacklist=bcm2835_wdt"
        self.write("covey/grub.cfg", menu.replace(" quiet ", f" quiet {watchdog} "))
        self._take_the_rest()

    def _take_the_rest(self) -> None:
        with self._disk.open("r+b") as disk:
            head = disk.read(HEAD_BYTES)
            old = Table.read(head)
            end = self.disk_bytes // SECTOR_BYTES
            first = self.data_bytes // SECTOR_BYTES
            rest = Partition("rest", LINUX, UUID(int=1), first, end - first - 34)
            table = Table(old.guid, end, (*old.partitions, rest))
            disk.seek(0)
            disk.write(table.head(fat="boot"))
            assert table.head(fat="boot")[:SECTOR_BYTES] == head[:SECTOR_BYTES]
            disk.seek(self.disk_bytes - len(table.tail()))
            disk.write(table.tail())

    def _machine(self, firmware: str, cpu: str) -> list[str]:
        return [
            "-machine", "raspi3b", "-kernel", str(self._folder / _UBOOT),
            "-dtb", str(self._folder / _TREE),
            # The first serial line is that of its Bluetooth, and U-Boot's until it has read that.
            "-serial", "null", "-serial", "chardev:line",
            "-drive", f"if=sd,format=raw,file={self._disk}",
        ]  # fmt: skip
