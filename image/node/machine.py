"""What an update has to know of this appliance: slots, devices, whom it trusts. A shell."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import EnvironmentFault, StateError
from image.node import manifest, release
from image.node.manifest import Manifest, numbers
from image.node.release import Release
from image.node.slots import SLOTS, Slot, other
from image.node.slotstore import FOLDER, SlotStore
from image.node.startup import write_private

_NO_FLOOR = "0.0.0"


@dataclass(frozen=True)
class Machine:
    """One appliance: the slot that runs, its release, and where its things are.

    `folder` is that of the slots' state; beside it lie `update-a` and `update-b`, the signed
    manifests of what was written to the slots, and `floor`. That of slot a comes with an image that
    was signed.
    """

    running: Slot
    release: Release
    folder: Path = FOLDER
    devices: dict[Slot, Path] = field(default_factory=dict)

    @property
    def store(self) -> SlotStore:
        """The slots' state."""
        return SlotStore(self.folder)

    def device(self, slot: Slot) -> Path:
        """Return a slot's device; raises EnvironmentFault where the disk has none."""
        if slot not in self.devices:
            raise EnvironmentFault(
                f"the disk has no partition slot-{slot}", hint="Flash the disk again."
            )
        return self.devices[slot]

    def floor(self) -> str:
        """Return the oldest version that may still be installed.

        A file that was damaged counts as none: what runs is a floor all the same.
        """
        try:
            text = (self.folder / "floor").read_text().strip()
            numbers(text)
        except (OSError, UnicodeDecodeError, StateError):
            return _NO_FLOOR
        return text

    def raise_floor(self) -> None:
        """Take over the floor that the running version's manifest names. Raises OSError."""
        head = self.head(self.running)
        if head is None:
            return
        floor = manifest.raised(self.floor(), manifest.verify(head, self.release.keys))
        if floor != self.floor():
            write_private(self.folder / "floor", f"{floor}\n".encode())

    def head(self, slot: Slot) -> bytes | None:
        """Return the signed manifest of what was written to a slot; None where none is kept."""
        try:
            return (self.folder / head_name(slot)).read_bytes()
        except OSError:
            return None

    def keep_head(self, slot: Slot, head: bytes) -> None:
        """Keep the signed manifest of what is written to a slot. Raises OSError."""
        write_private(self.folder / head_name(slot), head)

    def written(self, slot: Slot) -> Manifest | None:
        """Return the manifest of what was written to a slot; None where that is not known."""
        head = self.head(slot)
        if head is None:
            return None
        try:
            return manifest.verify(head, self.release.keys)
        except manifest.UpdateRefused:
            return None

    def version(self, slot: Slot) -> str:
        """Return the version in a slot, "" where that is not known."""
        if slot == self.running:
            return self.release.version
        found = self.written(slot)
        return found.version if found else ""

    @property
    def target(self) -> Slot:
        """The slot that an update is written to."""
        return other(self.running)


def head_name(slot: Slot) -> str:
    """Return the name of the file with the signed manifest of what was written to a slot."""
    return f"update-{slot}"


def running_slot(command_line: str) -> Slot:
    """Return the slot that runs, by the kernel's command line; a where it names none."""
    return "b" if re.search(r"\bcovey\.slot=b\b", command_line) else "a"


def find(root: Path = Path("/")) -> Machine:
    """Return this machine; raises StateError where it is no appliance, and OSError."""
    path = root / release.PATH
    if not path.exists():
        raise StateError("this machine is no appliance of Covey")
    facts = release.decode(path.read_bytes())
    slot = running_slot((root / "proc/cmdline").read_text())
    return Machine(slot, facts, root / FOLDER.relative_to("/"), _devices(root))


def _devices(root: Path) -> dict[Slot, Path]:
    """Return the slots' devices, on the disk that was booted from and on no other."""
    mounts = (line.split() for line in (root / "proc/mounts").read_text().splitlines())
    low = next((fields[0] for fields in mounts if fields[1:2] == ["/low"]), "")
    own = root / "sys/class/block" / Path(low).name
    if not low or not own.exists():
        return {}
    found: dict[Slot, Path] = {}
    for uevent in own.resolve().parent.glob("*/uevent"):
        facts = dict(line.partition("=")[::2] for line in uevent.read_text().splitlines())
        for slot in SLOTS:
            if facts.get("PARTNAME") == f"slot-{slot}":
                found[slot] = root / "dev" / facts["DEVNAME"]
    return found
