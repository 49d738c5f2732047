"""Placement measured: is it the best, how long does it take, and how do others' rules compare.

    python tests/bench/placement.py [--quick] [--json FILE] [--lab [--times N]]

1. Random problems of up to five nodes and nine layers, of every objective and wish: is the answer
   the best of all rings, which tests/unit/placement/brute.py prices one by one?
2. 64 nodes and 80 layers: processor time of one core, and how far the plan may be from the best.
3. Random meshes of 6 to 12 nodes in one to four places, of 10 to 800 GB/s and 8 to 96 GiB; models
   that need one to five of them; 0.2 to 1 ms and 1 to 10 Gbit/s within a place, 5 to 80 ms and
   10 Mbit/s to 1 Gbit/s between places: what a token is predicted to take with our plan, beside
   the rules of exo, llama.cpp and Petals (placement_rules.py) on the same problems. It compares
   decisions, priced by one model of time, not programs.

With `--lab` something else: what plans predict beside what rings of real agents then do
(placement_lab.py).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from placement_rules import Rules
from report import Row, conditions, finish, parser, percentiles, row

from agent.demo import sandbox
from agent.errors import CoveyError
from agent.placement.inputs import OVERHEAD, Aims, Link, Links, Model, Node
from agent.placement.objectives import Choice
from agent.placement.plan import plan
from agent.placement.problem import problem

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "placement"))

import brute

GIB = 2**30
SEED = 11
CONTEXT = 8192
# The design's goal for one core.
GOAL_S = 1.0


def against_brute_force(count: int) -> list[Row]:
    """Return how many random problems were answered worse than they can be, or not at all."""
    rng, wrong, possible, several = np.random.default_rng(SEED), 0, 0, 0
    for _ in range(count):
        case = brute.random_case(rng)
        choice = _choice(case.model, case.nodes, case.links, case.aims)
        if choice is None:
            wrong += brute.rings(case) != []
            continue
        possible += 1
        several += bool(choice.ring.way)
        said = brute.verdict(case, choice.token_s, choice.round_s)
        if said:
            print(f"  {case}: {said}", file=sys.stderr)
        wrong += bool(said)
    return [
        row(f"{count} random problems: answered wrong", wrong, "", goal=0),
        row("of them with a ring", possible, ""),
        row("of them with a ring of several nodes", several, ""),
    ]


def _choice(model: Model, nodes: list[Node], links: Links, aims: Aims) -> Choice | None:
    try:
        asked = problem(model, nodes, links, aims)
    except CoveyError:
        return None
    return asked.chooser().best(aims.objective, asked.least, asked.most, asked.must)


def random_mesh(rng: np.random.Generator, count: int, needed: int, layers: int) -> brute.Case:
    """Draw a mesh in some places, and a model that needs so many of its nodes at least."""
    places = rng.integers(0, int(rng.integers(1, 5)), count)
    nodes = [
        Node(
            f"n{number}", f"node{number}", int(brute.log_uniform(rng, 8, 96) * GIB),
            decode_bytes_s=(speed := brute.log_uniform(rng, 1e10, 8e11)),
            prefill_flop_s=20 * speed,
        )
        for number in range(count)
    ]  # fmt: skip
    links = {}
    for one in range(count):
        for other in range(one):
            near = places[one] == places[other]
            rtt_s = brute.log_uniform(rng, *((2e-4, 1e-3) if near else (5e-3, 0.08)))
            bytes_s = brute.log_uniform(rng, *((1.25e8, 1.25e9) if near else (1.25e6, 1.25e8)))
            links[(f"n{one}", f"n{other}")] = Link(rtt_s, rtt_s / 20, bytes_s=bytes_s)
    room = sorted((node.free_bytes / OVERHEAD for node in nodes), reverse=True)
    # So large that one node less cannot hold it, and that these just can.
    size = sum(room[: needed - 1]) + rng.uniform(0.1, 0.6) * room[needed - 1]
    embedding, cache = 0.02 * size, 2048
    layer = max(1.0, (size - embedding) / layers - cache * CONTEXT)
    sizes = tuple(int(layer * rng.uniform(0.95, 1.05)) for _ in range(layers))
    model = Model(
        sizes, int(embedding), kv_bytes=cache, output_bytes=int(embedding / 2),
        row_bytes=4 * 8192,
    )  # fmt: skip
    return brute.Case(model, nodes, Links(links), Aims("latency", context=CONTEXT))


def many_nodes(count: int) -> Iterator[Row]:
    """Yield times and gaps for 64 nodes and 80 layers."""
    wishes: dict[str, Callable[[brute.Case], Aims]] = {
        "latency, head given": lambda case: _aims(case, "latency", head=True),
        "latency, any head": lambda case: _aims(case, "latency", head=False),
        "throughput of 16, head given": lambda case: _aims(case, "throughput", head=True),
        "throughput of 16, any head": lambda case: _aims(case, "throughput", head=False),
    }
    for title, aims in wishes.items():
        rng, times, gaps, sizes = np.random.default_rng(SEED + 1), [], [], []
        for number in range(count):
            case = random_mesh(rng, 64, (1, 2, 3, 5, 8, 12)[number % 6], 80)
            began = time.process_time()
            found = plan(case.model, case.nodes, aims(case), case.links)
            times.append(time.process_time() - began)
            gaps.append(100 * found.gap)
            sizes.append(len(found.nodes))
        middle, _ = percentiles(times)
        yield row(f"64 nodes, {title}: median", middle, "s", goal=GOAL_S)
        yield row(f"64 nodes, {title}: longest", max(times), "s", goal=GOAL_S)
        middle, _ = percentiles(gaps)
        yield row(f"64 nodes, {title}: bound within, median", middle, "%")
        yield row(f"64 nodes, {title}: bound within, worst", max(gaps), "%")
        yield row(f"64 nodes, {title}: nodes in the largest ring", max(sizes), "")


def _aims(case: brute.Case, objective: str, *, head: bool) -> Aims:
    roomiest = max(case.nodes, key=lambda node: node.free_bytes)
    return Aims(
        objective,  # type: ignore[arg-type] # one of them
        context=CONTEXT, streams=16 if objective == "throughput" else 1,
        head=roomiest.node if head else "",
    )  # fmt: skip


def against_rules(count: int) -> list[Row]:
    """Return how many times longer a token takes with others' rules."""
    rng = np.random.default_rng(SEED + 2)
    ratios: dict[str, list[float]] = {"exo": [], "llama.cpp": [], "Petals": []}
    lost = dict.fromkeys(ratios, 0)
    times = []
    for number in range(count):
        case = random_mesh(rng, int(rng.integers(6, 13)), 1 + number % 5, 48)
        began = time.process_time()
        ours = plan(case.model, case.nodes, case.aims, case.links).token_s
        times.append(time.process_time() - began)
        rules = Rules(case.model, case.nodes, case.links, case.aims)
        for name, rule in (
            ("exo", rules.exo), ("llama.cpp", rules.llama_cpp), ("Petals", rules.petals),
        ):  # fmt: skip
            theirs = rule()
            if theirs is None:
                lost[name] += 1
            else:
                ratios[name].append(theirs / ours)
    rows = [row(f"{count} meshes: a plan, median", percentiles(times)[0], "s"),
            row(f"{count} meshes: a plan, longest", max(times), "s")]  # fmt: skip
    for name, found in ratios.items():
        rows += [
            row(f"a token by {name}'s rule, median", float(np.median(found)), "× ours"),
            row(f"a token by {name}'s rule, p90", float(np.quantile(found, 0.9)), "× ours"),
            row(f"a token by {name}'s rule, best for it", min(found), "× ours"),
            row(f"meshes without a placement by {name}'s rule", lost[name], ""),
        ]
    return rows


def lab(quick: bool, times: int, file: Path | None) -> int:
    """Measure rings in a sandbox, whose nodes have shares of the CPUs."""
    import placement_lab
    from meshlab import shares

    if not sandbox.inside():
        with shares.made(placement_lab.NAMES):
            return sandbox.run([sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        rows = placement_lab.measure(Path("/run/covey-lab"), Path(folder), quick, times)
    found = conditions(
        quick=quick, times=times, share=placement_lab.WHOLE, context=placement_lab.CONTEXT,
        tokens=placement_lab.ANSWER, rate_mbit=placement_lab.RATE / 1e6, device="wireguard-go",
        threads_per_engine=1,
    )  # fmt: skip
    finish("placement_lab", found, rows, file)
    return 0


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    made = parser(__doc__)
    made.add_argument("--lab", action="store_true", help="predicted beside measured, on agents")
    made.add_argument("--times", type=int, metavar="N", help="with --lab: each (5; quick: 2)")
    flags = made.parse_args()
    if flags.lab:
        return lab(flags.quick, flags.times or (2 if flags.quick else 5), flags.json)
    rows = against_brute_force(500 if flags.quick else 10_000)
    rows += many_nodes(6 if flags.quick else 24)
    rows += against_rules(20 if flags.quick else 100)
    finish("placement", conditions(seed=SEED, context=CONTEXT), rows, flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
