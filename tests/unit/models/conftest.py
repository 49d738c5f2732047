"""Where the tests of models find their servers and models."""

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from homes import Home


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    made = Home(tmp_path, port)
    yield made
    for node in made.nodes:
        await node.down()
