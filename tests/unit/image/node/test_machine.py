"""What the machine is: found where the kernel and the image say it, on the disk that booted."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import EnvironmentFault, StateError, UsageError
from image.node import release
from image.node.machine import find, running_slot
from image.node.release import Release

KEY = bytes(range(32))


def root(folder: Path, slot: str = "b") -> Path:
    """Make what /proc and /sys show of two disks with the same partitions; vda was booted from."""
    (folder / "proc").mkdir()
    (folder / "proc/cmdline").write_text(f"quiet covey.slot={slot} covey.reset=n\n")
    number = {"a": 3, "b": 4}[slot]
    (folder / "proc/mounts").write_text(
        f"root / overlay rw 0 0\n/dev/vda{number} /low squashfs ro\n"
    )
    blocks = folder / "sys/class/block"
    blocks.mkdir(parents=True)
    for disk in ("vdb", "vda"):
        for at, name in enumerate(("bios", "boot", "slot-a", "slot-b", "data"), 1):
            device = folder / f"sys/devices/{disk}/{disk}{at}"
            device.mkdir(parents=True)
            (device / "uevent").write_text(f"MAJOR=1\nDEVNAME={disk}{at}\nPARTNAME={name}\n")
            (blocks / f"{disk}{at}").symlink_to(device)
    path = folder / release.PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(release.encode(Release("0.1.0", "x86_64", (KEY,))))
    return folder


def test_the_slots_are_those_of_the_disk_that_was_booted_from(tmp_path: Path) -> None:
    machine = find(root(tmp_path))
    assert machine.running == "b" and machine.target == "a"
    assert machine.release.keys == (KEY,)
    assert machine.device("a") == tmp_path / "dev/vda3"
    assert machine.device("b") == tmp_path / "dev/vda4"
    assert machine.folder == tmp_path / "boot/esp/covey"


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no appliance"):
        find(tmp_path)
    folder = root(tmp_path)
    (folder / "proc/mounts").write_text("/dev/vda1 / ext4 rw 0 0\n")
    with pytest.raises(EnvironmentFault, match="no partition slot-a"):
        find(folder).device("a")
    (folder / release.PATH).write_bytes(b"{}")
    with pytest.raises(StateError, match="makes no sense"):
        find(folder)


def test_the_slot_is_in_the_kernels_command_line() -> None:
    assert running_slot("quiet covey.slot=b covey.reset=n") == "b"
    assert running_slot("quiet covey.slot=a") == running_slot("quiet") == "a"


def test_a_public_key_is_a_line_of_text() -> None:
    line = release.encode_public(KEY)
    assert release.decode_public(line) == release.decode_public(f"  {line}\r\n") == KEY
    for wrong in ("", "covey-update-key-1 AAAA", line[:-8], line.replace("public", "private")):
        with pytest.raises(UsageError, match="no public key"):
            release.decode_public(wrong)


def test_a_release_that_nobody_could_read_is_not_written() -> None:
    with pytest.raises(UsageError):
        release.encode(Release("1.0", "x86_64"))
    with pytest.raises(UsageError):
        release.encode(Release("1.0.0", "x86_64", (b"short",)))
