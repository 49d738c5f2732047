"""Three machines on a LAN, where documents are typed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typist import Typist

from agent.demo.mesh import AgentLab
from agent.demo.netlab import Lan

LAN = 77
MACHINES = ("kitchen", "garage", "notebook")


@pytest.fixture
def typist(tmp_path: Path) -> Iterator[Typist]:
    lan = Lan(LAN)
    made = Typist(AgentLab(tmp_path, lan))
    for name in MACHINES:
        lan.add(name)
    try:
        yield made
    finally:
        made.close()
        for name in MACHINES:
            made.lab.try_agent(name, "down")
        lan.close()
