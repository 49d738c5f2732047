"""The gateway measured, beside LiteLLM, SMG and no gateway at all.

    python tests/bench/gateway.py [--quick] [--json FILE] [--only NAME …]

One replica that costs next to nothing, clients that ask again at once (gatewaylab/), and before the
replica each gateway in turn on one core, the other gateways being stopped; clients and replica have
another core. Every round has all of them, so that what else the machine does falls on all alike.
What a gateway adds is its figure less that of no gateway in the same round; all figures are medians
over the rounds.

The peer of a row is the best of the others; the JSON's `limit` has them all, and a proxy that is
aiohttp and nothing else (gatewaylab/plain.py), on whose server and connections ours is made.
LiteLLM and SMG are installed into the cache folder as requirements/peers.txt pins them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from gatewaylab import contenders
from gatewaylab.client import BenchError, ask, body, request
from gatewaylab.rounds import Figures, Rounds
from report import Row, conditions, finish, parser, row

OURS, DIRECT, FLOOR = "Covey", "no gateway", "aiohttp alone"
PEERS = {"LiteLLM": contenders.litellm, "SMG": contenders.smg}
GATEWAYS = {OURS: contenders.covey, FLOOR: contenders.plain, **PEERS}
CONNECTIONS = (1, 16, 64)
STREAMS, STREAM_TOKENS = 64, 16
REQUESTS, QUICK_REQUESTS = 1_000_000, 20_000
# Programs do much once only, at their first requests.
WARM_S = 2.0
# Pools and caches are full by then: what is more later has been kept by mistake.
SETTLED_SHARE = 0.2
GROWTH_GOAL_MIB = 1.0


def measure(port: int, seconds: float, process: contenders.Process) -> Figures:
    """Return the figures of one contender, which is `process`, in one round; times in ms."""
    found: Figures = {}
    plain = request(port)
    for count in CONNECTIONS:
        before_s = process.cpu_s
        seen, _ = ask(port, plain, count, seconds)
        found[f"CPU, {count}"] = 1000 * (process.cpu_s - before_s) / len(seen.seconds)
        found[f"p50, {count}"] = 1000 * statistics.median(seen.seconds)
        found[f"p99, {count}"] = 1000 * _p99(seen.seconds)
        found[f"requests/s, {count}"] = seen.rate
    seen, _ = ask(port, request(port, stream_tokens=2), 1, seconds)
    found["first chunk, p50"] = 1000 * statistics.median(seen.first_s)
    found["first chunk, p99"] = 1000 * _p99(seen.first_s)
    seen, _ = ask(port, request(port, stream_tokens=STREAM_TOKENS), STREAMS, seconds)
    found["streams/s"] = seen.rate
    return found


def _p99(values: list[float]) -> float:
    return sorted(values)[min(int(0.99 * len(values)), len(values) - 1)]


def same_bytes(port: int, direct: int) -> bool:
    """Say whether a stream's body is the replica's own, byte for byte."""
    answers = [ask(at, request(at, STREAM_TOKENS), 1, 0.0)[1] for at in (port, direct)]
    return body(answers[0]) == body(answers[1])


def memory(process: contenders.Process, port: int, requests: int) -> list[Row]:
    """Return how the gateway's memory is after so many requests, one in ten of them streams."""
    held: list[float] = []
    each = requests // 20
    for _ in range(20):
        ask(port, request(port), 32, 3600.0, each - each // 10)
        ask(port, request(port, stream_tokens=1), 32, 3600.0, each // 10)
        held.append(process.rss_mib)
    settled = int(20 * SETTLED_SHARE)
    return [
        row(f"memory (RSS) after {requests:,} requests", held[-1], "MiB"),
        row("memory more than after a fifth of them", held[-1] - held[settled - 1], "MiB",
            goal=GROWTH_GOAL_MIB, limit=" ".join(f"{mib:.1f}" for mib in held)),
    ]  # fmt: skip


def rows(found: Rounds) -> list[Row]:
    """Return the rows of the report."""
    made = []
    for count in CONNECTIONS:
        at = f"{count} connection{'s' if count > 1 else ''}"
        made += [
            found.row(f"added latency p50, {at}", found.added(f"p50, {count}"), "ms",
                     0.5 if count == 1 else None),
            found.row(f"added latency p99, {at}", found.added(f"p99, {count}"), "ms"),
            found.row(f"requests, {at}", found.absolute(f"requests/s, {count}"), "1/s",
                     2500 if count == max(CONNECTIONS) else None, higher=True),
        ]  # fmt: skip
    made += [
        found.row(f"CPU a request, {max(CONNECTIONS)} connections",
                  found.absolute(f"CPU, {max(CONNECTIONS)}"), "ms"),
        found.row("added to the first chunk, p50", found.added("first chunk, p50"), "ms", 0.3),
        found.row("added to the first chunk, p99", found.added("first chunk, p99"), "ms"),
        found.row(f"streams of {STREAM_TOKENS} chunks, {STREAMS} at a time",
                 found.absolute("streams/s"), "1/s", higher=True),
    ]  # fmt: skip
    if "LiteLLM" in found.names:
        rate = found.absolute(f"requests/s, {max(CONNECTIONS)}")
        ratio = rate(OURS) / rate("LiteLLM")
        made.append(row("requests, times LiteLLM's", ratio, "", goal=10, higher=True))
    for figure in (f"p50, {CONNECTIONS[0]}", f"requests/s, {max(CONNECTIONS)}", "streams/s"):
        value = found.absolute(figure)(DIRECT)
        made.append(row(f"no gateway: {figure}", value, "ms" if "p50" in figure else "1/s"))
    return made


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS),
                      metavar="NAME", help=f"the peers; any of {', '.join(PEERS)}")  # fmt: skip
    flags.add_argument("--requests", type=int, metavar="N",
                      help=f"for memory ({REQUESTS:,}; quick: {QUICK_REQUESTS:,})")  # fmt: skip
    arguments = flags.parse_args()
    rounds, seconds = (3, 1.0) if arguments.quick else (7, 3.0)
    requests = arguments.requests or (QUICK_REQUESTS if arguments.quick else REQUESTS)
    cores = sorted(os.sched_getaffinity(0))
    missing: list[str] = []
    try:
        if arguments.only:
            contenders.install_peers()
    except BenchError as error:
        missing.append(str(error))
        arguments.only = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covey-bench-")))
        os.sched_setaffinity(0, {cores[-1]})
        replica, direct = contenders.replica(cores[-1], folder)
        stack.callback(replica.stop)
        ports = {DIRECT: direct}
        processes = {}
        for name in (OURS, FLOOR, *arguments.only):
            try:
                process, port = GATEWAYS[name](direct, cores[0], folder)
                stack.callback(process.stop)
                ask(port, request(port), 4, WARM_S)
            except BenchError as error:
                if name == OURS:
                    raise
                missing.append(f"{name} cannot be measured: {error}")
                continue
            process.pause()
            processes[name], ports[name] = process, port
        for line in missing:
            print(line, file=sys.stderr)
        found = Rounds(list(ports), ours=OURS, direct=DIRECT, floor=FLOOR)
        for number in range(rounds):
            found.note(DIRECT, measure(direct, seconds, replica))
            for name, process in processes.items():
                with process.awake():
                    found.note(name, measure(ports[name], seconds, process))
            for name in ports:
                print(f"round {number + 1} {name}: {found.words(name)}", file=sys.stderr)
        made = rows(found)
        for name, process in processes.items():
            made.append(row(f"memory (RSS) after the rounds, {name}", process.rss_mib, "MiB"))
        with processes[OURS].awake():
            same = same_bytes(ports[OURS], direct)
            made.append(row("a stream's bytes are the replica's", int(same), "of 1", goal=1,
                            higher=True))  # fmt: skip
            made += memory(processes[OURS], ports[OURS], requests)
    os.sched_setaffinity(0, cores)
    more = {"rounds": rounds, "seconds_each": seconds, "requests_for_memory": requests,
            "core_of_gateway": cores[0], "core_of_the_rest": cores[-1],
            "missing": "; ".join(missing) or "nothing"}  # fmt: skip
    finish("gateway", conditions(quick=arguments.quick, **more), made, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
