"""The main job measured: one stream through gateway, WireGuard and ring, beside plain llama.cpp.

    python tests/bench/main_job.py [--quick] [--json FILE]

In one run and on the same machine: llama.cpp alone in one process (the peer), then the bundled
model over one, two and three nodes in network namespaces, each asked through the gateway. With
the bundled model the arithmetic is next to nothing, so the figures show what Covey itself costs a
token: HTTP, Python, frames and wireguard-go. They say nothing of models that are worth cutting.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import time
from pathlib import Path

import llama_cpp
from report import Row, conditions, finish, parser, row

from agent.demo import sandbox
from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh
from agent.models import bundled

PROMPT = "What is a certificate?"
TOKENS = 64


def ending_tokens() -> list[int]:
    """Return the tokens that end an answer; they are biased away, so that every answer is long."""
    llama = llama_cpp.Llama(str(bundled.path()), vocab_only=True, verbose=False)
    vocabulary = llama._model.vocab
    return [t for t in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, t)]


def peer(repeats: int) -> tuple[float, float]:
    """Return llama.cpp's (ms to the first token, ms a token) for the whole model, one thread."""
    llama = llama_cpp.Llama(str(bundled.path()), n_ctx=0, n_threads=1, verbose=False)
    firsts, rates = [], []
    for _ in range(repeats):
        llama.reset()
        began = time.perf_counter()
        stamps = []
        for _ in llama.generate(llama.tokenize(PROMPT.encode()), temp=0.0, reset=True):
            stamps.append(time.perf_counter())
            if len(stamps) == TOKENS:
                break
        firsts.append((stamps[0] - began) * 1000)
        rates.append((stamps[-1] - stamps[0]) * 1000 / (len(stamps) - 1))
    return statistics.median(firsts), statistics.median(rates)


def ask(base: str, model: str, repeats: int) -> tuple[float, float]:
    """Return (ms to the first token, ms a token) through an OpenAI endpoint."""
    host, port = base.split(":")
    body = {
        "model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True,
        "logit_bias": {str(token): -100 for token in ending_tokens()},
    }  # fmt: skip
    firsts, rates = [], []
    for _ in range(repeats):
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        began = time.perf_counter()
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        stamps = []
        while line := response.readline():
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                stamps.append(time.perf_counter())
        connection.close()
        if len(stamps) < 2:
            raise SystemExit(f"{model} gave {len(stamps)} pieces, too few to time")
        firsts.append((stamps[0] - began) * 1000)
        rates.append((stamps[-1] - stamps[0]) * 1000 / (len(stamps) - 1))
    return statistics.median(firsts), statistics.median(rates)


def measure(repeats: int) -> list[Row]:
    """Bring the mesh up, ask, and return the rows."""
    rows: list[Row] = []

    def add(name: str, value: float, unit: str, peer: float | None = None) -> None:
        rows.append(row(name, value, unit, peer=peer))

    began = time.perf_counter()
    mesh = DemoMesh(Path("/run/covey-bench"))
    mesh.up(lambda text: print(f"  {text}", file=sys.stderr))
    add("mesh of four nodes up and connected", time.perf_counter() - began, "s")
    try:
        mesh.gateway(["--listen", f"127.0.0.1:{GATEWAY_PORT}"])
        for nodes in (1, 2, 3):
            began = time.perf_counter()
            mesh.deploy(nodes, lambda text: print(f"  {text}", file=sys.stderr), name=f"n{nodes}")
            add(f"{nodes} nodes: deployed", time.perf_counter() - began, "s")
        mesh.wait_served({"n1", "n2", "n3"})
        first, each = peer(repeats)
        for nodes in (1, 2, 3):
            done = mesh.machine(GATEWAY).run(
                [sys.executable, __file__, "--ask", f"n{nodes}", "--repeats", str(repeats)],
                env=mesh.environment(GATEWAY) | {"PYTHONPATH": os.getcwd()},
            )
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            to_first, a_token = json.loads(done.stdout)
            add(f"{nodes} nodes: to the first token", to_first, "ms", first)
            add(f"{nodes} nodes: a token", a_token, "ms", each)
    finally:
        mesh.stop_gateways()
    return rows


def main() -> int:
    """Parse flags, measure in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--ask", help=argparse.SUPPRESS)
    flags.add_argument("--repeats", type=int, default=0, help=argparse.SUPPRESS)
    arguments = flags.parse_args()
    if arguments.ask:
        print(json.dumps(ask(f"127.0.0.1:{GATEWAY_PORT}", arguments.ask, arguments.repeats)))
        return 0
    if not sandbox.inside():
        return sandbox.run([sys.executable, *sys.argv])
    repeats = 3 if arguments.quick else 15
    rows = measure(repeats)
    found = conditions(
        model=bundled.NAME, tokens=TOKENS, repeats=repeats, threads_per_engine=1, frames="f32",
        peer="llama.cpp alone in one process",
    )  # fmt: skip
    finish("main_job", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
