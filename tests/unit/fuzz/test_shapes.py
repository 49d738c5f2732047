"""Messages with hostile values are still messages of the same form, and do reach the decoders."""

import random
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import decoders
import shapes


def test_what_is_packed_or_json_stays_so_and_changes() -> None:
    chance = random.Random(1)
    inner = msgspec.msgpack.encode([1, "a", b"x"])
    packed = msgspec.msgpack.encode({"type": "T", "inner": inner, "list": [1, 2]})
    for sample, decode in (
        (packed, msgspec.msgpack.decode),
        (b'{"model":"m","list":[1,{"a":null}]}', msgspec.json.decode),
    ):
        found = {shapes.reshaped(chance, sample) for _ in range(300)}
        assert len(found) > 100
        for raw in found:
            assert raw is not None
            decode(raw)
    # What is packed within it is changed inside: a list still, and another one.
    within = [msgspec.msgpack.decode(shapes.reshaped(chance, packed) or b"") for _ in range(300)]
    inners = [each["inner"] for each in within if isinstance(each, dict) and "inner" in each]
    changed = [each for each in inners if isinstance(each, bytes) and each != inner]
    assert sum(shapes._packed(each) is not None for each in changed) > 5


def test_what_stands_before_it_stays() -> None:
    chance = random.Random(1)
    sample = b"\xc1Q1234567" + msgspec.msgpack.encode([1, 2])
    for _ in range(50):
        found = shapes.reshaped(chance, sample)
        assert found is not None
        assert found[:9] == sample[:9]
    assert shapes.reshaped(chance, b"\xc1 neither") is None


def test_many_are_taken() -> None:
    """Else they would try the same refusals as random bytes do."""
    chance = random.Random(1)
    targets = {target.name: target for target in decoders.targets()}
    for name in ("join reply", "gossip events", "certificate, signed", "key change, signed"):
        sample = targets[name].samples[0]
        made = [shapes.reshaped(chance, sample) for _ in range(300)]
        assert sum(targets[name].takes(raw or b"") for raw in made) > 5, name
