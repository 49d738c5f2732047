"""Agents on one LAN with shares of the CPUs, and links with delays and bandwidths.

Only works inside a sandbox, with groups of `shares.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.demo.fleet import Fleet, wait_until
from agent.demo.netlab import Machine
from agent.errors import PeerError
from meshlab import shares as shares_of

HERE = Path(__file__).parent
# What waits longer than this at a link's end is dropped.
_QUEUE = "50ms"
# Frames that the kernel has not cut yet pass whole; at the slowest rates a little after each other.
_BURST_BYTES = 128 << 10
# What agents that are idle add to a round trip at most.
_OWN_MS = 4.0
_SETTLES_S = 40.0


class Nodes(Fleet):
    """So many machines n0, n1, …, each an agent with a share of a CPU; all see each other."""

    def __init__(self, root: Path, count: int, share: float) -> None:
        for number in range(count):
            shares_of.limit(f"n{number}", share)
        super().__init__(root, count)
        self._switch: subprocess.Popen[str] | None = None
        self.join_all(parallel=1)
        for name in self.names:
            self.wait_connected(name, count - 1)

    # What a machine is told to do, its agent does, in its share.
    def try_agent(
        self, name: str, *arguments: str, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `agent ARGUMENTS` as a part of a machine."""
        return self.run(name, [sys.executable, "-m", "agent", *arguments], timeout_s=timeout_s)

    def run(
        self, name: str, command: Sequence[str], timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as a part of a machine: in its share, on its network."""
        # `Fleet` names its machines after this is called for the first time.
        number = int(name[1:])
        return self.machine(name).run(
            shares_of.command(name, number, command),
            env=self.environment(name),
            timeout_s=timeout_s,
        )

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command as a part of a machine; its words come by a pipe."""
        machine: Machine = self.machine(name)
        line = machine.command(shares_of.command(name, int(name[1:]), command))
        return subprocess.Popen(
            line, env=self.environment(name), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def client(self, name: str) -> Client:
        """Return a client on a machine, which takes nothing of its share."""
        line = self.machine(name).command([sys.executable, str(HERE / "ask.py")])
        return Client(line)

    def share(self, shares: Sequence[float]) -> None:
        """Give the machines these shares of their CPUs from now on."""
        for name, each in zip(self.names, shares, strict=True):
            shares_of.limit(name, each)

    # ------------------------------------------------------------------ links

    def rates(self, bits_s: float | None) -> None:
        """Have each machine send so much at most; None: as much as it can."""
        for name in self.names:
            base = ["tc", "-n", name, "qdisc"]
            subprocess.run([*base, "del", "dev", "eth0", "root"], check=False, capture_output=True)
            if bits_s is not None:
                subprocess.run(
                    [*base, "add", "dev", "eth0", "root", "tbf", "rate", f"{bits_s:.0f}bit",
                     "burst", str(_BURST_BYTES), "latency", _QUEUE], check=True,
                )  # fmt: skip

    def delays(self, one_way_s: Callable[[str, str], float]) -> None:
        """Have what one machine sends to another come so much later, for each pair."""
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()
            self._switch = None
        found: Mapping[str, Mapping[str, float]] = {
            f"to-{one}": {f"to-{other}": one_way_s(one, other)
                          for other in self.names if other != one}
            for one in self.names
        }  # fmt: skip
        lan: Any = self.lab
        slow = any(any(row.values()) for row in found.values())
        for link in found:
            how = ["nomaster"] if slow else ["master", "switch"]
            subprocess.run(["ip", "-n", lan.switch, "link", "set", link, *how], check=True)
        if slow:
            self._switch = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{lan.switch}", sys.executable,
                 str(HERE / "switch.py"), json.dumps(found)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            if self._switch.stdout is None or self._switch.stdout.readline() != "ready\n":
                raise SystemExit("the switch with delays did not start")

    def carried(self, name: str) -> int:
        """Return the bytes that a machine's link has carried, both ways."""
        said = self.machine(name).run(["ip", "-j", "-s", "link", "show", "eth0"])
        (link,) = json.loads(said.stdout)
        return sum(int(link["stats64"][way]["bytes"]) for way in ("rx", "tx"))

    def settled(self, rtt_s: Callable[[str, str], float]) -> None:
        """Start the agents again, and wait until they see round trips of about these lengths.

        What they saw before would go on in their means. On a busy machine round trips are longer
        than the links make them, and stay so: the wait ends after a while.
        """
        for name in self.names:
            self.agent(name, "restart")
        for name in self.names:
            self.wait_connected(name, len(self.names) - 1)

        def seen() -> bool:
            for name in self.names:
                for other, peer in self.peers(name).items():
                    known, ms = peer.get("path_rtt_ms"), 1000 * rtt_s(name, other)
                    if known is None or not 0.9 * ms <= known <= 1.2 * ms + _OWN_MS:
                        return False
            return True

        try:
            wait_until("the agents have seen the delays", seen, _SETTLES_S)
        except PeerError as error:
            print(f"  {error.line()}; others may be at work here", file=sys.stderr)


class Client:
    """A client that waits to be told what to ask; a context manager."""

    def __init__(self, line: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._read() != "ready\n":
            raise SystemExit("the client did not start")

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def ask(self, base: str, body: Mapping[str, object]) -> list[float]:
        """Return when the pieces of an answer came (time.monotonic())."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"base": base, "body": body}) + "\n")
        self._process.stdin.flush()
        came: list[float] = json.loads(self._read() or "[]")
        if not came:
            raise SystemExit(f"{base} gave no text")
        return came

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def now() -> float:
    """Return the time that clients stamp."""
    return time.monotonic()
