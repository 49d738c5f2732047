"""The lab: one mesh of real agents in namespaces for all its tests. Run it with `make namespaces`.

`python -m agent.demo.sandbox -- pytest tests/lab`: everything that is made here ends with that
sandbox, whatever a test does.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.demo import sandbox
from agent.demo.mesh import GATEWAY_PORT, DemoMesh

ROOT = Path("/run/covey-lab")
# Of each agent's log, where a test has failed: what it says of its deployments and of trouble.
TELLING, TOLD = (" deployment", " WARNING ", " ERROR "), 20

# What lies beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "monitoring"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to build networks on the machine itself."""
    if items and not sandbox.inside():
        raise pytest.UsageError("the lab tests run in a sandbox: use `make namespaces`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the agents said last to the report of a test that failed."""
    report = yield
    if report.failed and report.when == "call":
        for log in sorted(ROOT.glob("*/agent.log")):
            lines = [
                line for line in log.read_text().splitlines() if any(t in line for t in TELLING)
            ]
            report.sections.append((f"{log.parent.name} said", "\n".join(lines[-TOLD:])))
    return report


@pytest.fixture(scope="session")
def mesh() -> Iterator[DemoMesh]:
    """The demo's mesh with one deployment each over one, two and three nodes, and a gateway."""
    made = DemoMesh(ROOT)
    try:
        made.up(print)
        with ThreadPoolExecutor(3) as pool:
            for done in [
                pool.submit(made.deploy, nodes, print, name=name)
                for name, nodes in (("solo", 1), ("duo", 2), ("trio", 3))
            ]:
                done.result()
        made.gateway(["--listen", f"127.0.0.1:{GATEWAY_PORT}"])
        made.wait_served({"solo", "duo", "trio"})
        yield made
    finally:
        made.stop_gateways()
        for log in sorted(ROOT.glob("*/agent.log")):
            print(f"== {log}\n{log.read_text()[-4000:]}")
