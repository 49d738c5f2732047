"""Fixtures of the ACL's lab tests; what they are made of is in `acl_wire.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What lies beside the tests, which pytest's importlib mode does not put on the path; and the
# worlds that the unit tests are about as well.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "unit" / "acl")]

if TYPE_CHECKING:
    from acl_wire import Services, Wire


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    """The members' namespace and this node's addresses on the wire to it."""
    from acl_wire import made_wire

    with made_wire() as made:
        yield made


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Sockets on this node that answer."""
    from acl_wire import made_services

    with made_services() as made:
        yield made
