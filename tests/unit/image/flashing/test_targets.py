"""What is on a disk, and each reason for which it is not written to, by a /sys of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import UsageError
from image.flashing.targets import Disk, Part, System, check, size_text

GIB = 1 << 30
MOUNT = "36 1 {number} / {where} rw - {kind} {source} rw\n"


class Machine:
    """A machine with the disk sdb, which has two partitions."""

    def __init__(self, folder: Path) -> None:
        self.system = System(folder / "sys", folder / "proc")
        self.sys, self.proc = self.system.sys, self.system.proc
        (self.proc / "self").mkdir(parents=True)
        (self.sys / "dev/block").mkdir(parents=True)
        self.sdb = self.block("sdb", "8:16", 64)
        (self.sdb / "device").mkdir()
        (self.sdb / "device/vendor").write_text("SanDisk \n")
        (self.sdb / "device/model").write_text("Ultra  Fit\n")
        (self.sdb / "removable").write_text("1\n")
        for number, name in ((1, "boot"), (2, "")):
            part = self.block(f"sdb/sdb{number}", f"8:{16 + number}", 16)
            (part / "partition").write_text(f"{number}\n")
            (part / "uevent").write_text(
                f"DEVTYPE=partition\n{f'PARTNAME={name}' if name else ''}\n"
            )

    def block(self, name: str, number: str, gib: int) -> Path:
        path = self.sys / "block" / name
        (path / "holders").mkdir(parents=True)
        (path / "dev").write_text(f"{number}\n")
        (path / "size").write_text(f"{gib * GIB // 512}\n")
        (path / "ro").write_text("0\n")
        (self.sys / "dev/block" / number).symlink_to(path)
        return path

    def holds(self, part: str, name: str, number: str, title: str) -> None:
        holder = self.block(name, number, 8)
        (holder / "dm").mkdir()
        (holder / "dm/name").write_text(f"{title}\n")
        (self.sdb / part / "holders" / name).symlink_to(holder)

    def mounts(self, number: str, where: str, kind: str = "ext4", source: str = "/dev/x") -> None:
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(MOUNT.format(number=number, where=where, kind=kind, source=source))

    def disk(self) -> Disk:
        return self.system.disk(Path("/dev/sdb"), "8:16")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(disk: Disk, size: int = GIB) -> str:
    with pytest.raises(UsageError) as caught:
        check(disk, size)
    return caught.value.message


def test_a_disk_that_is_free(machine: Machine) -> None:
    machine.mounts("8:1", "/", source="/dev/sda1")
    disk = machine.disk()
    assert disk.parts == (Part("/dev/sdb1", "boot", 16 * GIB), Part("/dev/sdb2", "", 16 * GIB))
    assert disk.lines() == [
        "/dev/sdb: SanDisk Ultra Fit, 64.0 GiB, removable",
        "  /dev/sdb1 (boot): 16.0 GiB",
        "  /dev/sdb2: 16.0 GiB",
    ]
    check(disk, 64 * GIB)
    assert machine.system.disks() == [disk]


def test_a_mounted_partition(machine: Machine) -> None:
    machine.mounts("8:18", r"/media/me/My\040stick")
    said = "/dev/sdb is in use: /dev/sdb2 is mounted on /media/me/My stick"
    assert refused(machine.disk()) == said
    assert machine.system.disks() == []


def test_one_whose_file_system_has_a_number_of_its_own(machine: Machine) -> None:
    machine.mounts("0:43", "/mnt", "btrfs", "/dev/sdb1")
    assert refused(machine.disk()).endswith("/dev/sdb1 is mounted on /mnt")


def test_the_disk_of_the_running_system(machine: Machine) -> None:
    machine.holds("sdb2", "dm-0", "253:0", "crypt")
    machine.holds("../dm-0", "dm-1", "253:1", "vg-root")
    machine.mounts("253:1", "/", source="/dev/mapper/vg-root")
    said = "/dev/dm-1 is mounted on /, which runs this computer"
    assert refused(machine.disk()) == f"/dev/sdb is in use: {said}"


def test_swap_space(machine: Machine) -> None:
    (machine.proc / "swaps").write_text(
        "Filename Type Size Used Priority\n/dev/sdb2 partition 9 0 -2\n"
    )
    assert refused(machine.disk()) == "/dev/sdb is in use: /dev/sdb2 is swap space"


def test_a_part_of_something_larger(machine: Machine) -> None:
    machine.holds("sdb1", "dm-0", "253:0", "vg-home")
    assert refused(machine.disk()) == "/dev/sdb is in use: /dev/sdb1 is a part of vg-home"


def test_a_partition_is_no_disk(machine: Machine) -> None:
    with pytest.raises(UsageError, match="is a partition") as caught:
        machine.system.disk(Path("/dev/sdb1"), "8:17")
    assert caught.value.hint == "Name the whole disk: /dev/sdb."
    with pytest.raises(UsageError, match="is not a disk that"):
        machine.system.disk(Path("/dev/sdc"), "8:32")


def test_too_small_write_protected_and_empty(machine: Machine) -> None:
    assert refused(machine.disk(), 65 * GIB) == (
        "/dev/sdb is too small: it has 64.0 GiB, and the image 65.0 GiB"
    )
    (machine.sdb / "ro").write_text("1\n")
    assert refused(machine.disk()) == "/dev/sdb cannot be written to"
    (machine.sdb / "ro").write_text("0\n")
    (machine.sdb / "size").write_text("0\n")
    assert refused(machine.disk()) == "/dev/sdb has no medium"


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 3 << 40, 3 << 50)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "3.0 TiB", "3072.0 TiB",
    ]  # fmt: skip
