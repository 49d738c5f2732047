"""Random and mutated input for every decoder: a refusal, or a value, and nothing else escapes."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import decoders
from found import FOUND

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A log of thousands of refusals, kept by pytest, takes longer than they do."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_samples_are_read() -> None:
    """Else nothing beyond the first byte would ever be reached by a mutation of them."""
    for target in decoders.targets():
        for sample in target.samples:
            if target.name != "reply" or sample[:1] == b"\0":
                target.decode(sample)


def test_nothing_but_refusals_escapes() -> None:
    refused = decoders.fuzz(30_000, seed=1)
    # Each refuses most of what it gets, so the inputs do reach it; some take anything.
    may = {target.name for target in decoders.targets() if target.refuses_with}
    assert may == refused.keys()


def test_what_was_found_stays_mended() -> None:
    targets = {target.name: target for target in decoders.targets()}
    assert FOUND.keys() <= targets.keys()
    for name, inputs in FOUND.items():
        for raw in inputs:
            targets[name].takes(raw)
