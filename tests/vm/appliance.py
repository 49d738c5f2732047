"""The appliance in QEMU: a disk made from an image, started, and watched on its serial line.

No acceleration and no root. The machine reaches the network, and this machine, through QEMU's own
NAT; or it is plugged into a switch of a sandbox. Used by test_image.py, join.py and answer.py.

Needs: qemu-system-x86, ovmf for UEFI, mtools; for aarch64 qemu-system-arm, qemu-efi-aarch64.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from image.disk.gpt import SECTOR_BYTES
from image.disk.layout import Sizes, plan
from image.node import slotblocks
from image.node.slots import State

DISK_BYTES = 3 << 30
_MEMORY_MIB = 1024
_CPUS = min(2, os.cpu_count() or 1)
# By architecture QEMU's machine that starts from UEFI, and where UEFI and its variables are.
_UEFI = {
    "x86_64": ("q35", Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), "OVMF_VARS_4M.fd"),
    "aarch64": ("virt", Path("/usr/share/AAVMF/AAVMF_CODE.fd"), "AAVMF_VARS.fd"),
}
_END_S = 10.0
_POLL_S = 0.2
_ENTRIES_AT = 2 * SECTOR_BYTES
_ENTRY_BYTES = 128
# Of the superblock, s_magic: behind it s_state, and 36 bytes on s_feature_incompat with RECOVER.
_EXT4_AT = 1024 + 0x38
_EXT4_MADE_AT = 1024 + 0x108


class ApplianceFault(Exception):
    """The machine did not say what was waited for; the message has all that it said."""


@dataclass(frozen=True)
class Port:
    """A port of a switch: a tap, by its name, in a network namespace; `mac` is the machine's."""

    namespace: str
    tap: str
    mac: str

    def make(self, switch: str) -> None:
        """Make the tap and plug it into the bridge `switch`."""
        for words in (f"tuntap add {self.tap} mode tap", f"link set {self.tap} master {switch} up"):
            subprocess.run(["ip", "-n", self.namespace, *words.split()], check=True)


class Appliance:
    """A disk with the image on it, in `folder`; `port` is what it is plugged into."""

    disk_bytes = DISK_BYTES
    # Up to where its data partition may grow.
    data_bytes = DISK_BYTES

    def __init__(
        self, image: Path, folder: Path, port: Port | None = None, arch: str = "x86_64"
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._arch = arch
        self._folder = folder
        self._port = port
        self._disk = folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", image, self._disk], check=True)
        os.truncate(self._disk, self.disk_bytes)
        _, boot, self._slot_a, self._slot_b, _ = plan(arch, Sizes(), {}).partitions
        self._boot = f"{self._disk}@@{boot.first * SECTOR_BYTES}"

    def write(self, name: str, text: str) -> None:
        """Put a file onto the boot partition, as a person does in another computer."""
        self._put(name, text.encode())

    def read(self, name: str) -> bytes:
        """Return a file of the boot partition."""
        return _mtools("mtype", "-i", self._boot, f"::{name}")

    def slots(self) -> State:
        """Return the state of both slots, as it is on the disk."""
        zero, one = (self.read(f"covey/{name}") for name in slotblocks.FILES)
        return slotblocks.latest((zero, one)).state

    def has_both(self, state: State) -> None:
        """Put what is in slot a into slot b as well, and have the slots stand so."""
        with self._disk.open("r+b") as disk:
            disk.seek(self._slot_a.first * SECTOR_BYTES)
            content = disk.read(self._slot_a.sectors * SECTOR_BYTES)
            disk.seek(self._slot_b.first * SECTOR_BYTES)
            disk.write(content)
        for name, block in zip(slotblocks.FILES, slotblocks.fresh(state), strict=True):
            self._put(f"covey/{name}", block)

    def data_ends_at(self) -> int:
        """Return the byte behind the data partition, by the disk's partition table."""
        with self._disk.open("rb") as disk:
            disk.seek(_ENTRIES_AT + 4 * _ENTRY_BYTES)
            entry = disk.read(_ENTRY_BYTES)
        return (int(struct.unpack_from("<Q", entry, 40)[0]) + 1) * SECTOR_BYTES

    @contextmanager
    def running(
        self, firmware: str = "bios", cpu: str = "max", devices: Sequence[str] = ()
    ) -> Iterator[None]:
        """Start it with "bios" or "uefi" and a CPU of QEMU's; leaving it cuts the power.

        Only a PC has a BIOS. `devices` are more of QEMU's arguments.
        """
        command = [
            f"qemu-system-{self._arch}", "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi", "-chardev", "stdio,id=line,signal=off",
            *self._machine(firmware, cpu), *devices,
        ]  # fmt: skip
        if self._port:
            command = ["nsenter", f"--net=/run/netns/{self._port.namespace}", *command]
        with (self._folder / "qemu").open("wb") as said, self._serial.open("wb") as shown:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=shown, stderr=said, bufsize=0
            )
        try:
            yield
        finally:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self._process.kill()
            self._process.wait()
            self._line.close()

    def wait_for(self, text: str, timeout_s: float) -> float:
        """Return after how many seconds the console showed a text; ApplianceFault if not."""
        began = time.monotonic()
        while text not in self.console():
            waited = time.monotonic() - began
            if waited > timeout_s or self._process.poll() is not None:
                said = (self._folder / "qemu").read_text(errors="replace")
                raise ApplianceFault(f"{waited:.0f} s without {text!r}:\n{said}{self.console()}")
            time.sleep(_POLL_S)
        return time.monotonic() - began

    def wait_for_end(self, timeout_s: float) -> None:
        """Return when it has switched itself off; ApplianceFault if it does not."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ApplianceFault(f"{timeout_s:.0f} s and still on:\n{self.console()}") from None

    def is_clean(self) -> bool:
        """Say whether the data partition was unmounted, by its file system's own note."""
        magic, state, needs = struct.unpack("<HH36xI", self._data(_EXT4_AT, 44))
        return (magic, state & 1, needs & 4) == (0xEF53, 1, 0)

    def data_made_s(self) -> int:
        """Return when its data partition was made, by its own clock, in unix seconds."""
        return int.from_bytes(self._data(_EXT4_MADE_AT, 4), "little")

    def cut(self) -> None:
        """Cut its power now."""
        self._process.kill()
        self._process.wait()

    def keep(self, path: Path) -> None:
        """Keep a copy of its disk, while it does not run."""
        subprocess.run(["cp", "--sparse=always", self._disk, path], check=True)

    def restore(self, path: Path) -> None:
        """Give it a disk that was kept."""
        subprocess.run(["cp", "--sparse=always", path, self._disk], check=True)

    def type(self, keys: bytes) -> None:
        """Type on its serial line, as a terminal there sends keys. It has to run."""
        self._line.write(keys)

    def console(self) -> str:
        """Return all that this start has shown."""
        return self._serial.read_bytes().decode(errors="replace").replace("\r", "")

    def _data(self, at: int, size: int) -> bytes:
        """Return bytes of the data partition."""
        with self._disk.open("rb") as disk:
            disk.seek(_ENTRIES_AT + 4 * _ENTRY_BYTES)
            first = int(struct.unpack_from("<Q", disk.read(_ENTRY_BYTES), 32)[0]) * SECTOR_BYTES
            disk.seek(first + at)
            return disk.read(size)

    def _machine(self, firmware: str, cpu: str) -> list[str]:
        """Return QEMU's arguments for the machine, with its disk, network and serial line."""
        more = []
        if firmware == "uefi" or self._arch != "x86_64":
            board, code, empty = _UEFI[self._arch]
            variables = self._folder / "variables.fd"
            shutil.copyfile(code.with_name(empty), variables)
            more = [
                "-machine", board,
                "-drive", f"if=pflash,format=raw,readonly=on,file={code}",
                "-drive", f"if=pflash,format=raw,file={variables}",
            ]  # fmt: skip
        return [
            "-cpu", cpu, "-smp", str(_CPUS), "-m", str(_MEMORY_MIB), "-serial", "chardev:line",
            "-drive", f"if=none,id=disk,format=raw,file={self._disk}",
            "-device", "virtio-blk-pci,drive=disk", *self._network(), *more,
        ]  # fmt: skip

    def _network(self) -> list[str]:
        if self._port is None:
            return ["-nic", "user,model=virtio-net-pci"]
        tap = f"tap,ifname={self._port.tap},script=no,downscript=no"
        return ["-nic", f"{tap},model=virtio-net-pci,mac={self._port.mac}"]

    def _put(self, name: str, content: bytes) -> None:
        file = self._folder / "file"
        file.write_bytes(content)
        _mtools("mcopy", "-o", "-i", self._boot, file, f"::{name}")

    @property
    def _serial(self) -> Path:
        return self._folder / "console"

    @property
    def _line(self) -> IO[bytes]:
        assert self._process.stdin
        return self._process.stdin


def _mtools(*command: object) -> bytes:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(
        [str(word) for word in command], env=environment, check=True, stdout=subprocess.PIPE
    ).stdout
