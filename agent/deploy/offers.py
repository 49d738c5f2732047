"""What the catalogue's models would take here: on one node, on several, or how much is missing.

For `agent catalogue`. The workers that are there are asked for their free memory, and placement is
asked for a plan with needs computed from a model's shape; nothing is fetched or loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.deploy.facts import Ask, facts_of
from agent.deploy.mesh import Mesh
from agent.deploy.needs import default_context, model_needs, whole_bytes
from agent.engine.cuttable import CutRule
from agent.errors import CoveyError
from agent.models import bundled, catalogue
from agent.models.catalogue import Entry, File
from agent.placement.inputs import OVERHEAD, Aims, Model, Node
from agent.placement.plan import plan

# The local API's client waits 10 s for all of it.
_FACTS_TIMEOUT_S = 3.0

# Nodes that a line for people names.
_NAMED = 4


@dataclass(frozen=True)
class Fit:
    """How a model would run: on which nodes (names, the head first), spread by which engine.

    No nodes: it does not fit, and `missing_bytes` more of free memory would be needed.
    """

    nodes: tuple[str, ...] = ()
    engine: str = "ring"
    missing_bytes: int = 0

    @property
    def said(self) -> str:
        """For people."""
        spread = " with --engine rpc" if self.engine == "rpc" else ""
        if not self.nodes:
            return f"needs {_gib(self.missing_bytes)} more{spread}"
        if len(self.nodes) == 1:
            return f"fits one node ({self.nodes[0]})"
        more = ", …" if len(self.nodes) > _NAMED else ""
        return f"{len(self.nodes)} nodes ({', '.join(self.nodes[:_NAMED])}{more}){spread}"


def sizes_of(entry: Entry, file: File, cuts: CutRule | str, *, in_line: bool = False) -> Model:
    """Return what placement needs to know of a model of the catalogue, with its usual context.

    `in_line`: spread by llama.cpp's RPC.
    """
    facts = catalogue.facts(entry, file)
    return model_needs(facts, default_context(facts), cuts, in_line=in_line)


def fit(entry: Entry, file: File, workers: Sequence[Node]) -> Fit:
    """Return how a model would run on these workers, its file on the one with most free memory."""
    cuts = catalogue.cuts(entry)
    whole, context = sizes_of(entry, file, cuts), usual_context(entry, file)
    nodes = _placed(whole, workers, context)
    if nodes or isinstance(cuts, CutRule):
        return Fit(nodes, missing_bytes=0 if nodes else _missing(whole, workers, context))
    spread = sizes_of(entry, file, CutRule(), in_line=True)
    nodes = _placed(spread, workers, context)
    return Fit(nodes, "rpc", 0 if nodes else _missing(spread, workers, context))


def usual_context(entry: Entry, file: File) -> int:
    """Return how many tokens a model gets where nobody said."""
    return default_context(catalogue.facts(entry, file))


def _placed(sizes: Model, workers: Sequence[Node], context: int) -> tuple[str, ...]:
    """Return the nodes (names, head first) of placement's plan; none where it does not fit."""
    if not workers:
        return ()
    head, *others = sorted(workers, key=lambda worker: -worker.free_bytes)
    # A plan over many nodes takes a while, and this one cannot be.
    if not sizes.uncut and whole_bytes(sizes, context) > sum(
        worker.free_bytes for worker in workers
    ):
        return ()
    # One node that holds all is named first; which ring is best is asked when it is deployed.
    for most in (1, None):
        try:
            aims = Aims("latency", context=context, most=most)
            stages = plan(sizes, [head, *others], aims).stages
        except CoveyError:
            continue
        return tuple(dict.fromkeys(stage.name for stage in stages))
    return ()


def _missing(sizes: Model, workers: Sequence[Node], context: int) -> int:
    """Return how many bytes more would do; a model in one piece needs them on one node.

    At least a layer's, where what each node has left of its memory holds none.
    """
    free = [worker.free_bytes for worker in workers] or [0]
    there = max(free) if sizes.uncut else sum(free)
    layer = max(sizes.layer_bytes) + sizes.kv_bytes * context
    return max(whole_bytes(sizes, context) - there, int(layer * OVERHEAD))


class Offers:
    """The catalogue as this mesh could run it now."""

    def __init__(self, mesh: Mesh, ask: Ask) -> None:
        """`ask` reaches this node too."""
        self._mesh = mesh
        self._ask = ask

    async def describe(self, name: str = "") -> dict[str, Any]:
        """Describe all models, or the one of that name, and what the workers have free.

        Raises UsageError for a name that is none.
        """
        chosen = [catalogue.find(name)] if name else catalogue.entries()
        workers = await self.workers()
        models = await asyncio.to_thread(_described, chosen, workers)
        return {
            "workers": [{"node": w.node, "name": w.name, "free_bytes": w.free_bytes}
                        for w in workers],
            "models": models,
        }  # fmt: skip

    async def workers(self) -> list[Node]:
        """Ask the workers that are there what they can hold.

        Who does not answer is left out, and who is draining.
        """
        members = self._mesh.live_workers(time.time())
        answers = await asyncio.gather(
            *(facts_of(self._ask, member.node_id, _FACTS_TIMEOUT_S) for member in members)
        )
        return [
            Node(str(member.node_id), member.certificate.name, facts.free_bytes)
            for member, facts in zip(members, answers, strict=True)
            if facts is not None and not facts.draining
        ]


def _described(entries: Iterable[Entry], workers: Sequence[Node]) -> list[dict[str, Any]]:
    found = []
    for entry in entries:
        cuts = catalogue.cuts(entry)
        why = cuts if isinstance(cuts, str) else ""
        files = []
        for file in entry.files:
            how = fit(entry, file, workers)
            files.append({
                "quantisation": file.quantisation, "source": file.source, "parts": file.parts,
                "bytes": catalogue.file_bytes(entry, file), "exact": file.bytes > 0,
                "seen": file.seen, "nodes": list(how.nodes), "engine": how.engine,
                "missing_bytes": how.missing_bytes, "fit": how.said,
            })  # fmt: skip
        found.append({
            "name": entry.name, "title": entry.title, "architecture": entry.architecture,
            "parameters": entry.parameters, "shape": msgspec.to_builtins(entry.shape),
            "bundled": entry.name == bundled.NAME, "cuttable": not why, "uncut": why,
            "files": files,
        })  # fmt: skip
    return found


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB"
