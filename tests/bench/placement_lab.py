"""Predicted beside measured: rings of real agents that measured themselves, for `placement.py`.

One mesh of three in network namespaces; the model is the random one of `ring.py`, in the first
node's store. For each share of a CPU and each delay the nodes' speeds are measured by the module
that agents do it with (`agent.engine.speeds`), in the node's share, with no engine at work; round
trips and bandwidths are the agents' own. What `agent plan` says for one stream is the prediction;
for eight streams the same figures are priced by the same model of time, since plans are for 1, 4 or
16. Then it is deployed and asked: ms a token of one stream after its first, tokens/s of eight
(where no two nodes of the ring share a CPU). The prompts are so long that a stream has as many
tokens behind it as the plan reckons with.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from report import Row, row
from ring import SMALL, VOCABULARY
from ringlab.nodes import CPUS

from agent.demo.fleet import wait_until
from agent.deploy.needs import cuts_of, model_needs
from agent.engine.gguf_file import GgufFile
from agent.placement.inputs import ROW_S, STAGE_S, UNMEASURED, Aims, Link, Links, Model, Node
from agent.placement.objectives import Choice, Chooser
from agent.placement.prices import Prices
from agent.placement.search import Ring

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from meshlab.nodes import Nodes
from tiny_models import write_model

HERE = Path(__file__).parent
NODES = 3
NAMES = tuple(f"n{number}" for number in range(NODES))
# Two of the nodes are on one CPU. With one stream only one node of a ring computes at a time, so
# each can have a whole one; many streams are asked only of rings whose nodes have a CPU each.
WHOLE = 1.0
CONTEXT, ANSWER, MANY = 1024, 48, 8
GOAL_PERCENT = 15.0
RATE = 1e9
MODEL = "model"
HEAD = "n0"
_ENDS_S = 60.0


@dataclass(frozen=True)
class Case:
    """A ring that is asked for: on so many nodes, for one answer or for many at once."""

    nodes: int
    objective: str

    @property
    def behind(self) -> int:
        """How many tokens the plan reckons that a stream has behind it."""
        return CONTEXT // (2 if self.objective == "latency" else 32)


@dataclass(frozen=True)
class Place:
    """The machines: their shares of WHOLE, and the links' delay one way, in s."""

    shares: tuple[float, ...]
    delay_s: float

    def title(self, case: Case) -> str:
        """Return what the table calls a case here."""
        shares = "/".join(f"{100 * share:.0f}" for share in self.shares[: case.nodes])
        far = f", {1000 * self.delay_s:g} ms" if case.nodes > 1 else ""
        return f"{case.nodes} node{'s' * (case.nodes > 1)}, {shares} %{far}, {case.objective}"


@dataclass(frozen=True)
class Found:
    """One case: ms a token and tokens/s of MANY streams, predicted and measured."""

    title: str
    predicted_ms: float
    measured_ms: float
    predicted_rate: float
    measured_rate: float | None
    words: str

    @property
    def errors(self) -> tuple[float, float | None]:
        """By how much predictions are too high, in percent: of a token's time, of the rate."""
        rate = self.measured_rate
        return (
            100 * (self.predicted_ms / self.measured_ms - 1),
            100 * (self.predicted_rate / rate - 1) if rate else None,
        )


def places(quick: bool) -> Iterator[tuple[Place, list[Case]]]:
    """Yield what is measured; what changes seldom comes first."""
    fast, slow = "latency", "throughput"
    if quick:
        yield Place((1.0, 1.0, 1.0), 0.0), [Case(1, fast), Case(2, fast)]
        yield Place((1.0, 0.5, 1.0), 0.02), [Case(2, slow), Case(3, fast)]
        return
    for shares in ((1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (0.5, 1.0, 0.5)):
        for delay_s in (0.0, 0.005, 0.02):
            rings = [Case(nodes, wish) for nodes in (2, 3) for wish in (fast, slow)]
            alone = [Case(1, fast)] if not delay_s and shares[1] != 0.5 else []
            yield Place(shares, delay_s), [*alone, *rings]


class Lab:
    """The mesh and its model."""

    def __init__(self, root: Path, model: Path, times: int) -> None:
        self.root = root
        self.mesh = Nodes(root, NODES, WHOLE)
        self.model = model
        self.times = times
        self.shares: tuple[float, ...] = ()
        with GgufFile(model) as file:
            self.needs = model_needs(file.facts(), CONTEXT, cuts_of(model))
        self.mesh.agent(HEAD, "pull", str(model), "--name", MODEL)
        self.mesh.rates(RATE)

    def arrange(self, place: Place) -> None:
        """Give the nodes their shares, have them measured anew, and set the delays."""
        if place.shares != self.shares:
            self.shares = place.shares
            self.mesh.share([WHOLE * share for share in place.shares])
            for name in self.mesh.names:
                cache = self.root / name / "engine"
                command = [sys.executable, "-m", "agent.engine.speeds", str(cache), "1"]
                done = self.mesh.run(name, command, timeout_s=300)
                if done.returncode != 0:
                    raise SystemExit(f"{name} could not be measured: {done.stderr[-500:]}")
        self.mesh.delays(lambda _one, _other: place.delay_s)
        self.mesh.settled(lambda _one, _other: 2 * place.delay_s)

    def measured(self, place: Place, case: Case) -> Found:
        """Predict, deploy, ask, and end it."""
        wish = [MODEL, "--nodes", str(case.nodes), "--objective", case.objective,
                "--context", str(CONTEXT)]  # fmt: skip
        mesh = self.mesh
        plan = mesh.ask(HEAD, "plan", *wish)
        knows = Known(mesh, self.needs)
        answer = mesh.ask(HEAD, "deploy", *wish, "--name", MODEL)
        stages = answer["stages"]
        one, many = (knows.priced(stages, streams) for streams in (1, MANY))
        again = knows.priced(stages, 1, behind=case.behind)
        predicted_s = again.token_s
        if [(s["node"], s["first"], s["last"]) for s in plan["stages"]] == [
            (s["node"], s["first"], s["last"]) for s in stages
        ]:
            predicted_s = plan["token_s"]
        rate = self._rate(answer["url"], 1, case.behind)
        cpus = [NAMES.index(name) % len(CPUS) for name in {stage["name"] for stage in stages}]
        together = None
        if len(set(cpus)) == len(cpus):
            together = self._rate(answer["url"], MANY, CONTEXT // (2 * MANY))
        mesh.agent(HEAD, "undeploy", MODEL)
        wait_until("the ring is gone", self._gone, _ENDS_S)
        cut = " ".join(f"{s['name']}:{s['first']}-{s['last']}" for s in stages)
        words = f"{cut}; {knows.words(stages)}; {1000 * one.token_s:.1f} ms by other tokens behind"
        return Found(place.title(case), 1000 * predicted_s, 1000 / rate, MANY / many.round_s,
                     together, words)  # fmt: skip

    def _rate(self, url: str, streams: int, behind: int) -> float:
        command = [sys.executable, str(HERE / "meshlab" / "rate.py"), urlsplit(url).netloc, MODEL,
                   *map(str, (streams, max(4, behind - ANSWER // 2), ANSWER, self.times,
                              VOCABULARY))]  # fmt: skip
        machine = self.mesh.machine(HEAD)
        done = subprocess.run(
            machine.command(command), capture_output=True, text=True, timeout=600,
            env=self.mesh.environment(HEAD),
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"the client failed: {done.stderr[-500:]}")
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return statistics.median(found)

    def _gone(self) -> bool:
        deployments: list[object] = self.mesh.get(HEAD, "/v1/deployments")["deployments"]
        engines = [self.mesh.status(name)["engines"] for name in self.mesh.names]
        return not deployments and not any(engines)


class Known:
    """What the agents know of nodes and links at this moment, as plans take it."""

    def __init__(self, mesh: Nodes, needs: Model) -> None:
        self._needs = needs
        statuses = {name: mesh.status(name) for name in mesh.names}
        self.nodes = [self._node(name, status) for name, status in statuses.items()]
        self.links: dict[tuple[str, str], Link] = {}
        for name, status in statuses.items():
            for peer in mesh.peers(name).values():
                if peer.get("path_rtt_ms") is not None:
                    self.links[status["node"], peer["node"]] = Link(
                        peer["path_rtt_ms"] / 1000, peer["path_jitter_ms"] / 1000,
                        peer["path_loss"], peer["link_bytes_s"] or UNMEASURED.bytes_s,
                    )  # fmt: skip

    @staticmethod
    def _node(name: str, status: dict[str, Any]) -> Node:
        computes = status["computes"]
        (speed, *_) = computes["speed"]["found"]
        share = computes["cpu_share"]
        return Node(status["node"], name, 1 << 40, decode_bytes_s=speed["decode_bytes_s"],
                    prefill_flop_s=speed["prefill_flop_s"],
                    batches=tuple(speed["batches"]), attended_s=speed["attended_s"] or None,
                    stage_s=STAGE_S / share, row_s=ROW_S / share)  # fmt: skip

    def priced(
        self, stages: Sequence[dict[str, Any]], streams: int, behind: int | None = None
    ) -> Choice:
        """Return what a ring is predicted to do with so many streams."""
        where = {node.node: number for number, node in enumerate(self.nodes)}
        way = tuple((where[s["node"]], s["first"], s["last"]) for s in stages[1:-1])
        aims = Aims(context=CONTEXT, streams=streams, kept=behind)
        first = stages[0]["last"] if way else 1
        prices = Prices(self._needs, self.nodes, Links(self.links), aims, first)
        return Chooser(prices).priced(Ring(where[stages[0]["node"]], way, 0.0))

    def words(self, stages: Sequence[dict[str, Any]]) -> str:
        """Return what the prediction rests on, for who looks for its faults."""
        nodes = [next(n for n in self.nodes if n.node == s["node"]) for s in stages]
        speeds = {n.name: f"{n.name} {(n.decode_bytes_s or 0) / 1e9:.1f} GB/s"
                  f" {(n.prefill_flop_s or 0) / 1e9:.0f} GFLOP/s"
                  f" ×{'/'.join(f'{each:.1f}' for each in n.batches)}" for n in nodes}  # fmt: skip
        hops = [
            self.links[one.node, other.node] for one, other in pairwise(nodes) if one is not other
        ]
        links = [f"{500 * link.rtt_s:.1f}+{1000 * link.jitter_s:.1f} ms"
                 f" {8e-6 * link.bytes_s:.0f} Mbit/s" for link in hops]  # fmt: skip
        return ", ".join([*speeds.values(), *links])


def measure(root: Path, folder: Path, quick: bool, times: int) -> list[Row]:
    """Measure all cases and return the rows."""
    model = write_model(folder / "model.gguf", weight_type="Q8_0", shape=SMALL)
    lab = Lab(root, model, times)
    found = []
    for place, cases in places(quick):
        lab.arrange(place)
        for case in cases:
            began = time.monotonic()
            found.append(lab.measured(place, case))
            one = found[-1]
            together = f"{one.measured_rate:.1f} tokens/s" if one.measured_rate else "not asked"
            print(f"  {one.title}: {one.predicted_ms:.1f} predicted, {one.measured_ms:.1f} ms;"
                  f" {MANY} streams {one.predicted_rate:.1f}, {together};"
                  f" {one.words}; {time.monotonic() - began:.0f} s", file=sys.stderr)  # fmt: skip
    return [*_rows(found)]


def _rows(found: Sequence[Found]) -> Iterator[Row]:
    for one in found:
        token, rate = one.errors
        yield row(f"{one.title}: a token", one.measured_ms, "ms", peer=one.predicted_ms,
                  limit="peer: predicted; " + one.words)  # fmt: skip
        yield row(f"{one.title}: error", token, "%")
        if one.measured_rate is not None and rate is not None:
            yield row(f"{one.title}: {MANY} streams", one.measured_rate, "tokens/s",
                      peer=one.predicted_rate, limit="peer: predicted")  # fmt: skip
            yield row(f"{one.title}: {MANY} streams, error", rate, "%")
    tokens = [one.errors[0] for one in found]
    rates = [rate for one in found if (rate := one.errors[1]) is not None]
    for title, errors in (("a token", tokens), (f"{MANY} streams", rates)):
        if not errors:
            continue
        sizes = [abs(error) for error in errors]
        yield row(f"{title}: mean error of {len(sizes)}", statistics.mean(sizes), "%",
                  goal=GOAL_PERCENT)  # fmt: skip
        yield row(f"{title}: largest error", max(sizes), "%")
        yield row(f"{title}: mean, with its sign", statistics.mean(errors), "%")
