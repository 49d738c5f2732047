"""Three machines for all tests of the playbooks, which are one story: `make ansible`.

`python -m agent.demo.sandbox -- pytest tests/ansible`; the tests of a file build on each other, and
those after one that failed are not run. alpha (Debian 12) and beta (Debian 13) have systemd, gamma
(Debian 12) has OpenRC; beta is reached as a user who has to give a password to become root.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import machines as made
import prepare
import roots

from agent.demo import sandbox

KINDS = {"alpha": "systemd", "beta": "trixie", "gamma": "openrc"}
GROUPS = {"covey_issuers": ["alpha"], "covey_gateways": ["alpha"], "covey_workers": list(KINDS)}
_failed: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to build networks on the machine itself."""
    if items and not sandbox.inside():
        raise pytest.UsageError("the playbooks' tests run in a sandbox: use `make ansible`")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what builds on a test that failed."""
    if _failed:
        pytest.skip(f"{_failed[0]} failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember the first test that failed."""
    report = yield
    if report.failed:
        _failed.append(item.name)
    return report


@pytest.fixture(scope="session")
def machines() -> Iterator[made.Machines]:
    """The three machines, as their distribution's installer leaves them."""
    with made.started(KINDS) as started:
        yield started


@pytest.fixture(scope="session")
def inventory(machines: made.Machines) -> Path:
    """The inventory of all three."""
    path = machines.inventory(
        GROUPS,
        covey_wheelhouse=str(prepare.wheelhouse()),
        covey_cache_dir=str(machines.folder / "cache"),
        covey_gateway_secrets_dir=str(machines.folder / "secrets"),
    )
    folder = path.parent / "host_vars"
    folder.mkdir()
    (folder / "beta.yml").write_text(
        f"ansible_user: {roots.OPERATOR}\nansible_become_password: {roots.PASSWORD}\n"
    )
    return path
