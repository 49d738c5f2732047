"""Which of some ports are bound in this network namespace, and by which program. A shell: /proc."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from agent.doctor.facts import Port, Taken

_LISTEN = "0A"  # include/net/tcp_states.h; a UDP socket that is bound has another state


def taken(ports: Sequence[Port], root: Path = Path("/")) -> tuple[Taken, ...]:
    """Return those of the ports that a socket is bound to (UDP) or listens on (TCP)."""
    bound = {
        protocol: dict(_bound(root, protocol)) for protocol in {port.protocol for port in ports}
    }
    found = [port for port in ports if port.number in bound[port.protocol]]
    names = _holders(root, (bound[port.protocol][port.number] for port in found)) if found else {}
    return tuple(Taken(p, names.get(bound[p.protocol][p.number], "")) for p in found)


def _bound(root: Path, protocol: str) -> Iterator[tuple[int, str]]:
    """Return port and inode of each socket, "0" for the kernel's own."""
    for family in ("", "6"):
        try:
            lines = (root / f"proc/net/{protocol}{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if protocol == "udp" or fields[3] == _LISTEN:
                yield int(fields[1].rpartition(":")[2], 16), fields[9]


def _holders(root: Path, inodes: Iterable[str]) -> dict[str, str]:
    """Return the programs that have these sockets, as far as this user may see: NAME (pid N)."""
    wanted, found = (
        {f"socket:[{inode}]": inode for inode in inodes if inode != "0"},
        {"0": "kernel"},
    )
    for process in (root / "proc").glob("[0-9]*"):
        with suppress(OSError):  # it is another user's, or has just ended
            for descriptor in (process / "fd").iterdir():
                inode = wanted.get(str(descriptor.readlink()))
                if inode is not None:
                    name = (process / "comm").read_text().strip()
                    found[inode] = f"{name} (pid {process.name})"
    return found
