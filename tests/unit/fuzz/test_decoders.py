"""Random and mutated input for every decoder: a refusal, or a value, and nothing else escapes."""

import logging
import sys
import tracemalloc
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


def test_a_file_costs_no_memory_for_layers_that_it_only_says_it_has() -> None:
    """Coverage found it: two billion layers were made into a set, to compare it with those."""
    (target,) = [one for one in decoders.targets() if one.name == "GGUF file to cut"]
    raw = bytearray(target.samples[0])
    at = raw.index(b"llama.block_count") + len(b"llama.block_count") + 4  # behind its type
    raw[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    tracemalloc.start()
    try:
        assert not target.takes(bytes(raw))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
