"""Fixtures of the NAT lab's tests: one internet with a site of every kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.natlab import NatLab, Site
from agent.demo.natrules import KINDS

# What lies beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def internet() -> Iterator[NatLab]:
    """One site of every kind, named as it, and two public machines, r1 and r2, to talk with."""
    with NatLab() as lab:
        for name, kind in KINDS.items():
            lab.add(name, kind, machines=2 if kind.together else 1)
        for name in ("r1", "r2"):
            lab.add(name, "public")
        yield lab


@pytest.fixture(scope="module")
def rendezvous(internet: NatLab) -> tuple[Site, Site]:
    """The two public machines' sites."""
    return internet.sites["r1"], internet.sites["r2"]
