"""docs/first-mesh.md, typed as it stands: each block on the machine that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typist import Typist, blocks

from agent.demo.mesh import AgentLab
from agent.demo.netlab import Lan

LAN = 77
MACHINES = ("kitchen", "garage", "notebook")
GATEWAY_PORT = 8088


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


def test_a_newcomer_gets_to_an_answer_by_what_the_document_says(typist: Typist) -> None:
    told = blocks("first-mesh.md")
    assert len(told) > 10
    for language, words, text in told:
        typist.type(language, words, text)
        if "stays" in words:
            typist.wait_for_port(typist.machine(words), GATEWAY_PORT)
    everything = "\n".join(typist.said)
    assert "kitchen" in everything and "garage" in everything
    # What 7 and 5 are, and which day it is, are in covey-mini's card.
    assert "12" in everything and "Tuesday" in everything
