"""Coverage-guided fuzzing of the same decoders, by atheris: it finds what chance takes ages for.

    .venv/bin/python -m venv /tmp/atheris && /tmp/atheris/bin/pip install atheris
    PYTHONPATH=$PWD:$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])') \\
        /tmp/atheris/bin/python tests/fuzz/guided.py [--seconds 60] [--only NAME] [--corpus DIR]

atheris is none of Covey's requirements: its wheel has 35 MB, and where there is none (ARM, musl) it
needs clang. What msgspec decodes is C to it, so those targets have few edges. Each target runs in a
process of its own, begins with its genuine samples (and with what DIR holds from an earlier run),
and may take SECONDS. Ends with exit code 1 and the input, in hex, of the first thing that escapes,
hangs or takes too much memory. Such an input belongs into the unit tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

try:
    import atheris
except ImportError:
    atheris = None

# What is instrumented has to be imported so; the process that only starts others needs none of it.
guide = atheris is not None and "--here" in sys.argv
with atheris.instrument_imports(include=["agent"]) if guide else contextlib.nullcontext():
    import control
    import decoders
    import discovery
    from dht.virtual import VirtualLoop

    from agent.control import rpc

# An input may be as long as the longest datagram, and much shorter than the longest frame.
MAX_BYTES = 4096
# A decoder takes well below a millisecond; the node one of some.
HANG_S = 5
MEMORY_MB = 1024
# What libFuzzer prints: runs, edges covered, features, inputs that it keeps.
_STATUS = re.compile(r"#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)/")
NEEDED = "guided.py needs atheris, which is not installed: `pip install atheris`, as its head says."


def main() -> int:
    """Parse flags; run one target here, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", metavar="NAME", choices=names(), help="just this target")
    parser.add_argument("--corpus", type=Path, help="where inputs that reached new code are kept")
    parser.add_argument("--here", nargs="+", metavar="ARG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if atheris is None:
        print(NEEDED, file=sys.stderr)
        return 1
    if arguments.here:
        return _run_here(*arguments.here)
    with contextlib.ExitStack() as stack:
        corpus = arguments.corpus or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sound = [
            _run(name, corpus / re.sub(r"\W+", "-", name), arguments.seconds)
            for name in ([arguments.only] if arguments.only else names())
        ]
    return 0 if all(sound) else 1


def _run(name: str, corpus: Path, seconds: int) -> bool:
    """Run one target in a process, print what it came to, and say whether nothing escaped."""
    corpus.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        [
            sys.executable, __file__, "--here", name, str(corpus), f"{corpus}-found-",
            str(seconds),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    status = _STATUS.findall(made.stdout)
    runs, edges, features, kept = status[-1] if status else ("0",) * 4
    print(f"{name}: {runs} runs, {edges} edges, {features} features, {kept} inputs", flush=True)
    if made.returncode == 0 and status:
        return True
    told = [line for line in made.stdout.splitlines() if not line.startswith(("INFO", "#"))]
    print("\n".join(told[-60:]), file=sys.stderr)
    for found in corpus.parent.glob(f"{corpus.name}-found-*"):
        print(f"{name}: {found.read_bytes().hex()}", file=sys.stderr)
    return False


def _run_here(name: str, corpus: str, prefix: str, seconds: str) -> int:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    target = _target(name)
    for number, sample in enumerate(target.samples):
        Path(corpus, f"sample-{number}").write_bytes(sample)
    flags = [
        f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}",
        f"-max_total_time={seconds}", f"-artifact_prefix={prefix}", "-print_final_stats=1", corpus,
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags], target.takes)
    atheris.Fuzz()
    return 0


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
