"""Puts `relay_ends` on the path, which pytest's importlib mode does not, and closes its sockets."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    from relay_ends import End

    yield
    while End.made:
        End.made.pop().close()
