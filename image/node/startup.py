"""Reads covey.toml at each start, before the network: `python3 -m image.node.startup`. A shell.

What is right in it goes to small files for the services; what is wrong is for the screen. Where
there is a mistake nothing counts, so the machine asks for an address and waits.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agent.errors import StateError
from image.node import hostfiles, kept
from image.node.settings import Settings, read
from image.node.slotstore import SlotStore

SETTINGS = Path("/boot/esp/covey.toml")
KEPT = Path("/data/passwords.json")
RUN = Path("/run/covey")
_PORTS = Path("/sys/class/net")


def start(file: Path, kept_file: Path, run: Path, ports: Path) -> list[str]:
    """Write the services' files of a settings file into `run`; return what is wrong."""
    notes: list[str] = []
    reading = read(_bytes(file))
    notes += map(str, reading.mistakes)
    settings = reading.settings or Settings()
    try:
        settings = settings.with_kept(kept.decode(_bytes(kept_file)))
    except StateError as error:
        notes.append(error.line())
    run.mkdir(parents=True, exist_ok=True)
    files = hostfiles.of(settings, _mac(ports))
    files[hostfiles.NOTES] = "".join(f"{note}\n" for note in notes).encode()
    for name, raw in files.items():
        write_private(run / name, raw)
    return notes


def write_private(path: Path, raw: bytes) -> None:
    """Put a file in the place of another one, whole or not at all, for this user alone."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    # FAT keeps the new name in memory for half a minute otherwise.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _mac(ports: Path) -> str:
    """Return the address of the first port that is a device; "" where there is none."""
    for port in sorted(ports.iterdir()) if ports.is_dir() else []:
        if (port / "device").exists():
            return (port / "address").read_text().strip()
    return ""


def main() -> None:
    """Do that on the appliance; what is wrong is shown on the console, too."""
    for note in start(SETTINGS, KEPT, RUN, _PORTS):
        print(f"covey.toml, {note}", flush=True)
    # Neither block whole: GRUB boots all the same, and the watching part says so.
    with contextlib.suppress(StateError, OSError):
        SlotStore().repair()


if __name__ == "__main__":
    main()
