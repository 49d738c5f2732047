"""How others place a model, as rules, priced by the same model of time as Covey's own plans.

All see the same nodes, links and bytes (KV cache and our share for buffers included). None of them
weighs links when it decides where layers go. Read in their sources in 2026:

exo          placement.py, placement_utils.py: of all cycles whose memory together holds the model
             those of the fewest nodes, of these the one with most memory; layers in proportion to
             memory, largest remainders first, at least one each. The order is that of the cycle
             that comes up first; here, that of the nodes' numbers. Frames go from node to node, the
             token from the last to the first. Without the download state that it also looks at.
llama.cpp    llama-model.cpp: layers, the output as one more, in proportion to free memory over all
             devices that it is given: the client and an RPC server on each other node. Every
             boundary goes through the client, so each server is a round trip; the client is the
             node with most memory. A row of logits is counted as a row of activations.
Petals       block_selection.py, sequence_manager.py: servers come one after another; each holds as
             many blocks as fit, where the sorted throughputs of the blocks are least. Where blocks
             are left without a server, all choose again, up to ten times (Petals does when balance
             is below 75 %). The client (here the node with most memory) has embedding and output,
             and takes the way of least delay by Petals' own estimate: half a round trip and 18 ms
             for each server, and the blocks' times, to the end of each server's blocks.

A rule returns a token's predicted time in seconds, or None where it finds no placement.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import pairwise

from agent.placement.inputs import DECODE_BYTES_S, OVERHEAD, Aims, Links, Model, Node

# Petals' estimate of serialisation.
_PETALS_HOP_S = 0.018
_PETALS_ROUNDS = 10


class Rules:
    """The rules for one problem."""

    def __init__(self, model: Model, nodes: Sequence[Node], links: Links, aims: Aims) -> None:
        self._model, self._nodes, self._links, self._aims = model, list(nodes), links, aims
        self._layers = len(model.layer_bytes)
        self._sizes = [size + model.kv_bytes * aims.context for size in model.layer_bytes]
        self._room = {node.node: node.free_bytes / OVERHEAD for node in nodes}

    def exo(self) -> float | None:
        """Return what a token takes with exo's rule."""
        needed = sum(self._sizes) + self._model.head_bytes
        ranked = sorted(self._nodes, key=lambda node: -node.free_bytes)
        for count in range(1, len(ranked) + 1):
            chosen = sorted(ranked[:count], key=lambda node: int(node.node[1:]))
            if sum(self._room[node.node] for node in chosen) >= needed:
                break
        else:
            return None
        total = sum(node.free_bytes for node in chosen)
        raw = [node.free_bytes / total * self._layers for node in chosen]
        counts = [int(share) for share in raw]
        order = sorted(range(count), key=lambda at: raw[at] - counts[at], reverse=True)
        for at in order[: self._layers - sum(counts)]:
            counts[at] += 1
        for at in range(count):
            if counts[at] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[at] = 1
        time, first = 0.0, 0
        for node, layers in zip(chosen, counts, strict=True):
            time += self._part(node, first, first + layers) + node.stage_s
            first += layers
        time += self._model.output_bytes / _decode(chosen[-1])
        for one, other in pairwise(chosen):
            time += self._hop(one, other, self._model.row_bytes)
        return time + (self._hop(chosen[-1], chosen[0], 4) if count > 1 else 0.0)

    def llama_cpp(self) -> float | None:
        """Return what a token takes with llama.cpp's rule."""
        client = max(self._nodes, key=lambda node: node.free_bytes)
        devices = [*(node for node in self._nodes if node is not client), client]
        total, reached, edges = sum(node.free_bytes for node in devices), 0.0, []
        for node in devices:
            reached += node.free_bytes
            edges.append(reached / total)
        owners = [
            next(at for at, edge in enumerate(edges)
                 if layer / (self._layers + 1) < edge or at == len(edges) - 1)
            for layer in range(self._layers + 1)
        ]  # fmt: skip
        time = 0.0
        for at, node in enumerate(devices):
            mine = [layer for layer, owner in enumerate(owners) if owner == at]
            if not mine:
                continue
            last = min(mine[-1] + 1, self._layers)
            time += self._part(node, min(mine[0], last), last) + node.stage_s
            if self._layers in mine:
                time += self._model.output_bytes / _decode(node)
            if node is not client:
                time += self._hop(client, node, self._model.row_bytes)
                time += self._hop(node, client, self._model.row_bytes)
        return time

    def petals(self) -> float | None:
        """Return what a token takes with Petals' rule."""
        client = max(self._nodes, key=lambda node: node.free_bytes)
        block = max(self._sizes)
        spans: dict[str, tuple[int, int]] = {}
        held: dict[str, int] = {}
        for node in self._nodes:
            room = self._room[node.node] - (self._model.head_bytes if node is client else 0)
            held[node.node] = max(0, min(self._layers, int(room // block)))
        for _ in range(_PETALS_ROUNDS):
            for node in self._nodes:
                if held[node.node]:
                    spans.pop(node.node, None)
                    start = self._best_start(spans, held[node.node])
                    spans[node.node] = (start, start + held[node.node])
            covered = {layer for span in spans.values() for layer in range(*span)}
            if len(covered) == self._layers:
                return self._route(client, spans)
        return None

    def _best_start(self, spans: dict[str, tuple[int, int]], length: int) -> int:
        by_id = {node.node: node for node in self._nodes}
        rates = [0.0] * self._layers
        for name, (first, last) in spans.items():
            # Petals divides a server's rate by the mean number of blocks that it is asked for.
            rate = _decode(by_id[name]) / max(self._sizes) / ((last - first + 1) / 2)
            for layer in range(first, last):
                rates[layer] += rate
        return min(
            (sorted(rates[start : start + length]), start)
            for start in range(self._layers - length + 1)
        )[1]

    def _route(self, client: Node, spans: dict[str, tuple[int, int]]) -> float | None:
        """Return the price of the way that Petals' client takes: Dijkstra by its own estimate."""
        by_id = {node.node: node for node in self._nodes}
        waiting: list[tuple[float, int, str, float]] = [(0.0, 0, client.node, 0.0)]
        best: dict[tuple[int, str], float] = {}
        while waiting:
            seems, layer, name, time = heapq.heappop(waiting)
            if layer > self._layers:
                return time + self._model.output_bytes / _decode(client) + client.stage_s
            if best.get((layer, name), math.inf) <= seems:
                continue
            best[(layer, name)] = seems
            here = by_id[name]
            if layer == self._layers:
                back = self._links.between(name, client.node).rtt_s / 2 if here is not client else 0
                price = self._hop(here, client, self._model.row_bytes) if here is not client else 0
                heapq.heappush(waiting, (seems + back, layer + 1, name, time + price))
                continue
            for other, (first, last) in spans.items():
                if not first <= layer < last:
                    continue
                near = by_id[other] is here
                link = self._links.between(name, other)
                computes = self._part(by_id[other], layer, last)
                delay = _PETALS_HOP_S + (0 if near else link.rtt_s / 2) + computes
                hop = 0.0 if near else self._hop(here, by_id[other], self._model.row_bytes)
                cost = time + hop + computes + by_id[other].stage_s
                heapq.heappush(waiting, (seems + delay, last, other, cost))
        return None

    def _part(self, node: Node, first: int, last: int) -> float:
        read = sum(self._model.layer_bytes[first:last])
        read += (last - first) * self._model.kv_bytes * self._aims.behind
        return read / _decode(node)

    def _hop(self, one: Node, other: Node, payload: int) -> float:
        return self._links.between(one.node, other.node).hop_s(payload)


def _decode(node: Node) -> float:
    return node.decode_bytes_s or DECODE_BYTES_S
