"""docs/clients.md: each program of its blocks asks the gateway of a mesh."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from typist import Block, Typist, blocks

from agent.demo.mesh import MODEL, WORKERS, DemoMesh

ASKING = [block for block in blocks("clients.md") if "on=door" in block.words]


@pytest.fixture(scope="module")
def bundled(mesh: DemoMesh) -> Iterator[DemoMesh]:
    """The mesh, with the model under the name that the page says."""
    mesh.deploy(1, print, name=MODEL)
    mesh.wait_served({MODEL})
    yield mesh
    mesh.agent(WORKERS[0], "undeploy", MODEL)


@pytest.mark.parametrize("block", ASKING, ids=lambda block: block.language)
def test_a_client_of_the_page_gets_an_answer(bundled: DemoMesh, block: Block) -> None:
    typist = Typist(bundled)
    typist.type(block)
    (said,) = typist.said
    # What curl prints is JSON, and a stream of it has the answer in pieces.
    told = "".join(re.findall(r'"content": ?"([^"]*)"', said)) or said
    assert "12" in told  # what 7 and 5 are, which covey-mini knows
    if "Monday" in block.text:
        assert "Tuesday" in said
