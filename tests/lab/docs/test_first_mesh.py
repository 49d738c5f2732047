"""docs/first-mesh.md, typed as it stands: each block on the machine that it names."""

from __future__ import annotations

from typist import Typist, blocks


def test_a_newcomer_gets_to_an_answer_by_what_the_document_says(typist: Typist) -> None:
    told = blocks("first-mesh.md")
    assert len(told) > 10
    for block in told:
        typist.type(block)
    everything = "\n".join(typist.said)
    assert "kitchen" in everything and "garage" in everything
    # What 7 and 5 are, and which day it is, are in covey-mini's card.
    assert "12" in everything and "Tuesday" in everything
