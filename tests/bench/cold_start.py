"""Cold start of a ring of two: from the command to the first token, and the bytes between them.

    python tests/bench/cold_start.py [--quick] [--json FILE] [--times N] [--share SHARE]
        [--rates MBIT …] [--delays MS …] [--wide]

Two agents in network namespaces on one LAN. One has a model in its store (`agent pull FILE`); then
`agent deploy --nodes 2`, and one request of 16 tokens through the head as soon as that returns.
Cold: the other node has nothing of the model, and the head has cut nothing. Warm: deployed again,
with all that was kept. The peer is llama.cpp's RPC, from the moment its library is loaded: the same
file on the same first node, a server that runs on the other one, which gets as many layers. Once
over the bare link, which Covey never uses, once over the same overlay. Its server's cache (`-c`)
keeps tensors of more than 10 MiB alone: the usual model has none, with `--wide` all that are large.

Both nodes have the same share of a CPU each, RPC and Covey alike, WireGuard (wireguard-go) within
it. The links' rates are the kernel's (tbf, each direction), the delays a switch's in user space.
Bytes are those of the head's link by its interface's counters, both ways, from the command to the
first token, with all that agents say to each other meanwhile; frames that the kernel cuts behind
the counter (TCP of the bare link) are counted with one header each. Files are in the page cache.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshlab import shares
from report import Row, conditions, finish, parser, row
from ring import SMALL

from agent.demo import sandbox
from agent.demo.fleet import wait_until
from agent.engine.gguf_file import GgufFile

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from meshlab.nodes import Nodes, now
from tiny_models import Shape, write_model

# Its feed-forward matrices have 18 MB each, those of attention 4.
WIDE = Shape(
    layers=4, n_embd=2048, heads=16, kv_heads=8, feed_forward=8192, vocabulary=8000, context=8192
)
HERE = Path(__file__).parent
ROOT = Path("/run/covey-cold")
MODEL = "model"
PROMPT, CONTEXT = 16, 1024
HEAD, OTHER = "n0", "n1"
# A port of engines, which the firewall of the overlay lets pass.
RPC_PORT = 7190
MBIT = 1e6
_ENDS_S = 60.0
# What agents say to each other on their own is little; a moment for what the case before left.
_CALM_S = 2.0


@dataclass(frozen=True)
class Start:
    """One start: s from the command until the server answers and to the first token, bytes."""

    ready_s: float
    first_s: float
    carried: int


class Bench:
    """The two nodes with a model, and what is done with them."""

    def __init__(self, share: float, model: Path) -> None:
        self.mesh = Nodes(ROOT, 2, share)
        self.model = model
        with GgufFile(model) as file:
            self.layers = file.layers
        self.away = self.layers // 2
        self.mesh.agent(HEAD, "pull", str(model), "--name", MODEL)

    def link(self, rate: float, delay_s: float) -> None:
        """Make the link between them so."""
        self.mesh.rates(rate)
        self.mesh.delays(lambda _one, _other: delay_s)
        self.mesh.settled(lambda _one, _other: 2 * delay_s)

    def forget(self) -> None:
        """Remove what both have of the model beside the file in the head's store."""
        shutil.rmtree(ROOT / HEAD / "parts", ignore_errors=True)
        shutil.rmtree(ROOT / OTHER / "stages", ignore_errors=True)

    def deployed(self) -> Start:
        """Deploy, ask, and end it."""
        mesh = self.mesh
        body = {"model": MODEL, "prompt": list(range(300, 300 + PROMPT)), "max_tokens": 1,
                "temperature": 0}  # fmt: skip
        with mesh.client(HEAD) as client:
            before, began = mesh.carried(HEAD), now()
            answer = mesh.ask(
                HEAD, "deploy", MODEL, "--name", MODEL, "--nodes", "2", "--context", str(CONTEXT)
            )
            ready = now()
            (first, *_) = client.ask(answer["url"], body)
            carried = mesh.carried(HEAD) - before
        (stage,) = (one for one in answer["stages"] if one["name"] == OTHER)
        self.away = stage["last"] - stage["first"]
        mesh.agent(HEAD, "undeploy", MODEL)
        wait_until("the ring is gone", self._gone, _ENDS_S)
        return Start(ready - began, first - began, carried)

    def _gone(self) -> bool:
        deployments: list[object] = self.mesh.get(HEAD, "/v1/deployments")["deployments"]
        engines = [self.mesh.status(name)["engines"] for name in self.mesh.names]
        return not deployments and not any(engines)

    @contextlib.contextmanager
    def server(self, address: str, cache: Path | None) -> Iterator[str]:
        """Run llama.cpp's RPC server on the other node; gives its place."""
        command = [sys.executable, str(HERE / "ringlab" / "rpc_server.py"),
                   f"{address}:{RPC_PORT}", *([str(cache)] if cache else [])]  # fmt: skip
        process = self.mesh.start(OTHER, command)
        try:
            wait_until("the RPC server listens", self._listens, _ENDS_S)
            yield f"{address}:{RPC_PORT}"
        finally:
            process.kill()
            process.wait()
            wait_until("the RPC server has ended", lambda: not self._listens(), _ENDS_S)

    def _listens(self) -> bool:
        return f":{RPC_PORT} " in self.mesh.machine(OTHER).run(["ss", "-Htln"]).stdout

    def rpc(self, place: str) -> Start:
        """Load the model over the server, and compute one token."""
        before = self.mesh.carried(HEAD)
        done = self.mesh.run(
            HEAD, [sys.executable, str(HERE / "meshlab" / "rpc_first.py"), str(self.model), place,
                   str(self.away), str(PROMPT)], timeout_s=600,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"llama.cpp over RPC failed: {done.stderr[-800:]}")
        began, loaded, first = json.loads(done.stdout.splitlines()[-1])
        return Start(loaded - began, first - began, self.mesh.carried(HEAD) - before)

    def cases(self, times: int) -> dict[str, list[Start]]:
        """Do everything so many times over the link as it is now."""
        found: dict[str, list[Start]] = {"cold": [], "warm": []}
        bare = self.mesh.machine(OTHER).address
        overlay = str(self.mesh.status(OTHER)["ipv4"]).partition("/")[0]
        for _ in range(times):
            time.sleep(_CALM_S)
            self.forget()
            found["cold"].append(self.deployed())
            time.sleep(_CALM_S)
            found["warm"].append(self.deployed())
            for title, address in (("bare", bare), ("overlay", overlay)):
                with self.server(address, None) as place:
                    found.setdefault(f"rpc {title}", []).append(self.rpc(place))
            with tempfile.TemporaryDirectory() as folder, self.server(bare, Path(folder)) as place:
                self.rpc(place)
                found.setdefault("rpc cached", []).append(self.rpc(place))
        return found


def middle(starts: list[Start]) -> Start:
    """Return the medians."""
    return Start(
        statistics.median(s.ready_s for s in starts), statistics.median(s.first_s for s in starts),
        int(statistics.median(s.carried for s in starts)),
    )  # fmt: skip


def rows_of(link: str, found: dict[str, list[Start]]) -> list[Row]:
    """Return the rows of one link."""
    of = {title: middle(starts) for title, starts in found.items()}
    rows = []
    for ours, title, theirs, how in (
        ("cold", "cold", "rpc bare", "RPC, bare link"),
        ("cold", "cold, beside RPC over the overlay", "rpc overlay", "RPC, overlay"),
        ("warm", "warm", "rpc cached", "RPC with -c, second load, bare link"),
    ):
        one, other = of[ours], of[theirs]
        longest = max(start.first_s for start in found[ours])
        rows.append(row(f"{link}, {title}: first token", one.first_s, "s", peer=other.first_s,
                        limit=f"peer: {how}; longest {longest:.2f} s"))  # fmt: skip
        rows.append(row(f"{link}, {title}: until ready", one.ready_s, "s", peer=other.ready_s))
        rows.append(row(f"{link}, {title}: between them", one.carried / 1e6, "MB",
                        peer=other.carried / 1e6))  # fmt: skip
    return rows


def measure(
    model: Path, share: float, rates: list[float], delays: list[float], times: int
) -> tuple[list[Row], int]:
    """Measure on all links; also returns how many layers went to the other node."""
    bench = Bench(share, model)
    rows: list[Row] = []
    bench.link(rates[0] * MBIT, 0.0)
    first = bench.deployed()
    rows.append(row("the very first, both nodes just installed: first token", first.first_s, "s",
                    limit="llama.cpp is proved on both, once for each build"))  # fmt: skip
    for delay in delays:
        for rate in rates:
            link = f"{rate:g} Mbit/s, {delay:g} ms"
            bench.link(rate * MBIT, delay / 1000)
            found = bench.cases(times)
            for title, starts in found.items():
                said = ", ".join(f"{s.first_s:.2f} s {s.carried / 1e6:.1f} MB" for s in starts)
                print(f"  {link}: {title}: {said}", file=sys.stderr)
            rows += rows_of(link, found)
    return rows, bench.away


def main() -> int:
    """Parse flags, measure in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--times", type=int, metavar="N", help="how often each (5; quick: 1)")
    flags.add_argument("--share", type=float, default=0.8, help="of a CPU, for each node")
    flags.add_argument("--rates", type=float, nargs="+", metavar="MBIT", help="(1000 100)")
    flags.add_argument("--delays", type=float, nargs="+", metavar="MS", help="one way (0 5)")
    flags.add_argument("--wide", action="store_true", help="a model of few, large matrices")
    arguments = flags.parse_args()
    if not sandbox.inside():
        with shares.made([HEAD, OTHER]):
            return sandbox.run([sys.executable, *sys.argv])
    times = arguments.times or (1 if arguments.quick else 5)
    rates = arguments.rates or ([1000.0] if arguments.quick else [1000.0, 100.0])
    delays = arguments.delays or [0.0, 5.0]
    with tempfile.TemporaryDirectory() as folder:
        shape = WIDE if arguments.wide else SMALL
        model = write_model(Path(folder) / "model.gguf", weight_type="Q8_0", shape=shape)
        rows, away = measure(model, arguments.share, rates, delays, times)
        size = model.stat().st_size
    found = conditions(
        quick=arguments.quick, times=times, share=arguments.share, model_mb=size / 1e6,
        layers=shape.layers, layers_away=away, prompt=PROMPT, device="wireguard-go",
        threads_per_engine=1,
    )  # fmt: skip
    finish("cold_start", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
