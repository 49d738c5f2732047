"""What agents hold as time goes by, and what is left when all have ended. Reads /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chaoslab.mesh import Storm

_MIB = 2**20


@dataclass(frozen=True)
class Held:
    """What a process held at a moment (monotonic seconds): memory in MiB, open files, threads."""

    at: float
    age_s: float
    rss: float
    files: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """What an agent held more in its last sample than in one of its first."""

    name: str
    over_s: float
    rss: float
    files: int
    threads: int


class Holdings:
    """Samples of each agent's process and the gateway's."""

    def __init__(self, mesh: Storm) -> None:
        self._mesh = mesh
        self._began: dict[tuple[str, int], float] = {}
        self.samples: dict[tuple[str, int], list[Held]] = {}

    def sample(self, now: float) -> None:
        """Take one of each that is there."""
        for name, pid in {**self._mesh.agents(), "gateway": self._mesh.gateway_pid}.items():
            key = (name, pid)
            with suppress(OSError):
                began = self._began.setdefault(key, now)
                self.samples.setdefault(key, []).append(held(pid, now, now - began))

    def growths(self, settled_s: float) -> list[Growth]:
        """Return how much each grew, from its first sample at such an age to its last.

        Those that lived for less than twice that are left out.
        """
        found = []
        for (name, _), samples in self.samples.items():
            last = samples[-1]
            first = next((one for one in samples if one.age_s >= settled_s), None)
            if first is not None and last.at - first.at >= settled_s:
                found.append(
                    Growth(
                        name,
                        last.at - first.at,
                        last.rss - first.rss,
                        last.files - first.files,
                        last.threads - first.threads,
                    )
                )
        return found


def held(pid: int, at: float, age_s: float) -> Held:
    """Return what a process holds. Raises OSError when it has ended."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    threads = len(os.listdir(process / "task"))
    return Held(at, age_s, pages * os.sysconf("SC_PAGE_SIZE") / _MIB,
                len(os.listdir(process / "fd")), threads)  # fmt: skip


def processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of every process here that is Covey's."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if _is_ours(words):
                    found[int(folder.name)] = (parent, words.strip())
    return found


def _is_ours(words: str) -> bool:
    marks = (" -m agent ", " -m gateway ", "agent.engine", "wireguard-go", "agent up", " -m agent.")
    return any(mark in f"{words} " for mark in marks) and "agent.demo" not in words


def strays(mesh: Storm) -> list[str]:
    """Return processes and interfaces that no agent of the mesh answers for, while all are up."""
    there = mesh.agents()
    agents = set(there.values())
    found = [f"no agent answers on {name}" for name in mesh.machines if name not in there]
    wireguards = dict.fromkeys(mesh.machines, 0)
    for pid, (parent, words) in processes().items():
        machine = words.rpartition("covey-")[2]
        if pid in agents or pid == mesh.gateway_pid:
            continue
        if "wireguard-go" in words and machine in wireguards:  # it may be older than its agent
            wireguards[machine] += 1
        elif parent not in agents:
            found.append(f"process {pid} (parent {parent}): {words}")
    found += [f"{name} has {count} wireguard-go" for name, count in wireguards.items()
              if count != 1]  # fmt: skip
    return found + _interfaces(mesh, up=set(mesh.machines))


def left_behind(mesh: Storm) -> list[str]:
    """Return what is still there after every agent has been told to end.

    Machines that are gone for good were never told anything.
    """
    found = [f"process {pid}: {words}" for pid, (_, words) in processes().items()]
    found += _interfaces(mesh, up=set())
    gone = {f"covey-{name}" for name in set(mesh.lab.machines) - set(mesh.machines)}
    sockets = Path("/run/wireguard").iterdir()
    found += [str(file) for file in sockets if file.stem not in gone]
    for name in mesh.machines:
        state = mesh.root / name
        left = [*state.glob("*.sock"), *state.glob("**/.*.*")]
        for kept in ("parts", "stages"):  # weights stay for the next time, under their hash
            left += [file for file in state.glob(f"{kept}/*") if file.suffix != ".gguf"]
        found += [str(file) for file in left]
    return found


def weights(mesh: Storm) -> float:
    """Return how many MiB of cut weights the machine with most of them keeps on its disk."""
    sizes = [
        sum(file.stat().st_size for file in (mesh.root / name).glob("[ps]*s/*.gguf"))
        for name in mesh.lab.machines
    ]
    return max(sizes) / _MIB


def _interfaces(mesh: Storm, up: set[str]) -> list[str]:
    found = []
    for name in mesh.lab.machines:
        lines = mesh.machine(name).run(["ip", "-o", "link"]).stdout.splitlines()
        there = {line.split(": ")[1].partition("@")[0] for line in lines}
        wanted = {"lo", "eth0"} | ({f"covey-{name}"} if name in up else set())
        found += [f"{name}: interface {one}" for one in sorted(there - wanted)]
        found += [f"{name}: no interface {one}" for one in sorted(wanted - there)]
    return found
