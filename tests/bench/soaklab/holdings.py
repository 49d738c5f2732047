"""What agents, engines, WireGuard and the gateway hold as time goes by. Reads /proc."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from chaoslab.leaks import Held, held, processes
from chaoslab.mesh import Storm

from agent.demo.fleet import engines
from soaklab.trend import Trend, trend

KINDS = ("agent", "engine", "wireguard-go", "gateway")
Key = tuple[str, str, int]


class Holdings:
    """Samples of each process, by its kind, its machine and its id."""

    def __init__(self, mesh: Storm) -> None:
        self._mesh = mesh
        self._began: dict[Key, float] = {}
        self.samples: dict[Key, list[Held]] = {}

    def sample(self, now: float) -> None:
        """Take one of each process that is there."""
        for key in self._there():
            began = self._began.setdefault(key, now)
            with suppress(OSError):  # it has just ended
                self.samples.setdefault(key, []).append(held(key[2], now, now - began))

    def trends(
        self, kind: str, value: Callable[[Held], float], after: float, over_s: float
    ) -> Mapping[str, Trend]:
        """Return the trends of a figure from `after` on, by machine.

        Of the processes of a kind that were there for `over_s` at least since then.
        """
        found = {}
        for (of, name, pid), samples in self.samples.items():
            since = [(one.at, value(one)) for one in samples if one.at >= after]
            seen = trend(since) if of == kind else None
            if seen is not None and seen.over_s >= over_s:
                found[f"{name} ({pid})"] = seen
        return found

    def last(self, kind: str, value: Callable[[Held], float]) -> float:
        """Return the most that any of a kind held when it was last seen."""
        found = [value(samples[-1]) for (of, _, _), samples in self.samples.items() if of == kind]
        return max(found, default=0.0)

    def write(self, file: Path) -> None:
        """Write all samples as JSON."""
        told = {f"{kind} {name} {pid}": [asdict(one) for one in samples]
                for (kind, name, pid), samples in self.samples.items()}  # fmt: skip
        file.write_text(json.dumps(told, indent=1))

    def _there(self) -> list[Key]:
        agents = self._mesh.agents()
        found = [("agent", name, pid) for name, pid in agents.items()]
        for name, pid in agents.items():
            found += [("engine", name, engine) for engine in engines(pid)]
        for pid, (_, words) in processes().items():
            if "wireguard-go" in words:
                found.append(("wireguard-go", words.rpartition("covey-")[2], pid))
        return [*found, ("gateway", self._mesh.door, self._mesh.gateway_pid)]
