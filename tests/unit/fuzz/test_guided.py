"""The guided fuzz without its guide: what it says then, and that its own targets are sound."""

import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import decoders
import guided


def test_without_atheris_it_says_so_in_one_line() -> None:
    hide = "import sys; sys.modules['atheris'] = None; sys.argv = ['x']; sys.path.insert(0, {!r})"
    run = "import guided; sys.exit(guided.main())"
    done = subprocess.run(
        [sys.executable, "-c", f"{hide.format(str(Path(guided.__file__).parent))}; {run}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == guided.NEEDED + "\n"


def test_the_router_takes_its_samples_and_changed_ones() -> None:
    feed(guided.Router(), 200)


def test_the_node_takes_its_samples_and_changed_ones() -> None:
    node = guided.Node()
    try:
        feed(node, 5)
    finally:
        node.close()


def feed(target: guided.Router | guided.Node, times: int) -> None:
    chance = random.Random(1)
    assert target.samples
    for sample in target.samples:
        target.takes(sample)
        for _ in range(times):
            target.takes(decoders.made(chance, sample))


def test_each_target_has_a_name_of_its_own() -> None:
    names = guided.names()
    assert len(set(names)) == len(names) > 35
    assert {"ticket", "router", "node"} <= set(names)
