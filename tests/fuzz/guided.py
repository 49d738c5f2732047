"""Coverage-guided fuzzing of the same decoders, by atheris: it finds what chance takes ages for.

    make guided [FUZZ_S=3600] [ARGS="--only NAME --corpus DIR"]

atheris is none of Covey's requirements: its wheel has 35 MB, and where there is none (ARM, musl) it
needs clang; make puts it into an environment of its own. What msgspec decodes is C to it, so those
targets have few edges. Each target runs in a child of its own, begins with its genuine samples
(and with what DIR holds from an earlier run), and gets an equal share of the time, which is the
processor's: other work on the machine makes it longer, not less. Ends with exit
code 1 and the input, in hex, of the first thing that escapes, hangs or takes too much memory. Such
an input belongs into `found.py`, made as small as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

try:
    import atheris
except ImportError:
    atheris = None

# What is instrumented has to be imported so; a test, which imports this module, needs none of it.
guide = atheris is not None and __name__ == "__main__"
with (
    atheris.instrument_imports(include=["agent", "gateway", "image"])
    if guide
    else contextlib.nullcontext()
):
    import control
    import decoders
    import discovery
    from dht.virtual import VirtualLoop

    from agent.control import rpc

# An input may be as long as the longest datagram, and much shorter than the longest frame.
MAX_BYTES = 4096
# A decoder takes well below a millisecond, the node some. This is by the clock, of a machine that
# may have much else to do; `target.py` counts the processor's time.
HANG_S = 60
MEMORY_MB = 1024
# What libFuzzer prints: edges covered, features, inputs that it keeps; and what `_fuzz` does.
_STATUS = re.compile(r"#\d+\s.*cov: (\d+) ft: (\d+) corp: (\d+)/")
_RUNS = re.compile(r"^runs: (\d+)$", re.M)
NEEDED = "guided.py needs atheris, which is not installed here: run it as `make guided`."


def main() -> int:
    """Parse flags; run one target here, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=int, default=3600, help="of the CPU, for all targets together"
    )
    parser.add_argument("--only", metavar="NAME", choices=names(), help="just this target")
    parser.add_argument("--corpus", type=Path, help="where inputs that reached new code are kept")
    arguments = parser.parse_args()
    if atheris is None:
        print(NEEDED, file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        corpus = arguments.corpus or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        wanted = [arguments.only] if arguments.only else names()
        share_s = max(1, arguments.seconds // len(wanted))
        ran = [_run(name, corpus / re.sub(r"\W+", "-", name), share_s, scratch) for name in wanted]
    runs, edges, cpu_s = (sum(values) for values in list(zip(*ran, strict=True))[1:])
    print(f"{len(ran)} targets: {runs} runs in {cpu_s:.0f} s ({runs / cpu_s:.0f}/s), {edges} edges")
    return 0 if all(run.sound for run in ran) else 1


class Ran(NamedTuple):
    """What became of a target: whether nothing escaped, inputs, edges covered, CPU seconds."""

    sound: bool
    runs: int
    edges: int
    cpu_s: float


def _run(name: str, corpus: Path, seconds: int, scratch: str) -> Ran:
    """Run one target in a child, whose files go to `scratch`, and print what it came to."""
    corpus.mkdir(parents=True, exist_ok=True)
    found = f"{corpus}-found-"
    with tempfile.TemporaryFile() as output:
        # A child of this process has all that was imported and instrumented, which takes seconds.
        if not (child := os.fork()):
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
            try:
                tempfile.tempdir = scratch
                _fuzz(name, corpus, found, seconds)
            finally:
                os._exit(1)  # atheris ends the process itself
        _, status, usage = os.wait4(child, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    told = _STATUS.findall(said)
    edges, features, kept = told[-1] if told else ("0",) * 3
    (runs,) = _RUNS.findall(said) or ("0",)
    print(f"{name}: {runs} runs, {edges} edges, {features} features, {kept} inputs", flush=True)
    ran = Ran(status == 0 and bool(told), int(runs), int(edges), usage.ru_utime + usage.ru_stime)
    if ran.sound:
        return ran
    lines = [line for line in said.splitlines() if not line.startswith(("INFO", "#"))]
    print("\n".join(lines[-60:]), file=sys.stderr)
    for path in corpus.parent.glob(f"{corpus.name}-found-*"):
        print(f"{name}: {path.read_bytes().hex()}", file=sys.stderr)
    return ran


def _fuzz(name: str, corpus: Path, found: str, seconds: int) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    target = _target(name)
    for number, sample in enumerate(target.samples):
        Path(corpus, f"sample-{number}").write_bytes(sample)
    longest = max(MAX_BYTES, *map(len, target.samples))
    flags = [
        f"-max_len={longest}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={found}", str(corpus),
    ]  # fmt: skip
    runs, until = 0, time.process_time() + seconds

    def take(data: bytes) -> None:
        nonlocal runs
        runs += 1
        target.takes(data)
        if time.process_time() > until:
            print(f"runs: {runs}", flush=True)
            os._exit(0)

    atheris.Setup([sys.argv[0], *flags], take)
    atheris.Fuzz()


class Router:
    """Gossip's router with a hostile member on a link: RPCs one after the other."""

    def __init__(self) -> None:
        self._router = control.Router(random.Random(1))
        some = decoders.some_rpc()
        some.published.append(
            ("health", control.sealed(random.Random(1), control.HOSTILE, 1, self._router.wall))
        )
        self.samples = (rpc.encode(some),)

    def takes(self, data: bytes) -> None:
        router = self._router
        router.now += 0.1
        with contextlib.suppress(rpc.RpcError):
            arrivals = router.node.receive(
                control.HOSTILE.id.ed25519, data, router.now, router.wall
            )
            for arrival in arrivals:
                router.node.settle(arrival.id, True, router.now)
        router.node.tick(router.now)
        for peer in router.node.pending():
            while (out := router.node.take(peer, router.now)) is not None:
                rpc.decode(out)
        router.check()


class Node:
    """A whole discovery node: what a member that means harm may put inside the seal."""

    def __init__(self) -> None:
        self._loop = VirtualLoop()
        self._bout = self._loop.run_until_complete(self._begin())
        self.samples = tuple(self._bout._message() for _ in range(30))

    def takes(self, data: bytes) -> None:
        self._loop.run_until_complete(self._receive(data))

    def close(self) -> None:
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _begin(self) -> discovery.Bout:
        bout = discovery.Bout(random.Random(1))
        await bout.start()
        return bout

    async def _receive(self, data: bytes) -> None:
        bout = self._bout
        raw = bout._sealed(bout.foes_seal, data[: discovery.seal.PAYLOAD_MAX_BYTES])
        bout._protocol.datagram_received(raw, (discovery.HOSTILE, discovery.PORT))
        await asyncio.sleep(0.1)
        bout.check()

    async def _end(self) -> None:
        await self._bout.victim.stop()
        await self._bout.friend.stop()


# What keeps a state from input to input.
STATEFUL: dict[str, Callable[[], Router | Node]] = {"router": Router, "node": Node}


def names() -> list[str]:
    """Return what can be fuzzed."""
    return [*(target.name for target in decoders.targets()), *STATEFUL]


def _target(name: str) -> decoders.Target | Router | Node:
    if name in STATEFUL:
        return STATEFUL[name]()
    return next(target for target in decoders.targets() if target.name == name)


if __name__ == "__main__":
    sys.exit(main())
