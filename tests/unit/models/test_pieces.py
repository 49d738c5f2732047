"""Manifests and pieces: every byte of any model is covered, and any changed byte is found."""

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_model

from agent.errors import ModelError, PeerError
from agent.models import bundled, manifest, pieces, survey
from agent.models.manifest import HEADER, MIN_PIECE_BYTES, Manifest, Span
from agent.models.pieces import Piece


def ignore(_: int) -> None:
    """Progress nobody looks at."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=3)


@pytest.fixture(scope="module")
def known(model: Path) -> Manifest:
    return survey.survey(model, ignore, MIN_PIECE_BYTES)


def test_a_manifest_has_the_header_and_every_tensor(model: Path, known: Manifest) -> None:
    import hashlib

    from agent.engine.gguf_file import GgufFile

    raw = model.read_bytes()
    assert known.size == len(raw)
    assert known.sha256 == hashlib.sha256(raw).hexdigest()
    with GgufFile(model) as opened:
        assert known.names() == {HEADER} | {tensor.name for tensor in opened.tensors}
        assert known.spans[0].sha256 == opened.header_sha256
    for span in known.spans:
        assert hashlib.sha256(raw[span.start : span.end]).hexdigest() == span.sha256
    assert manifest.fault_of(known) == ""
    assert manifest.decode(manifest.encode(known), manifest.identity(known)) == known
    assert survey.damaged(model, known, ignore) == []


def test_the_same_file_has_the_same_id_and_any_other_has_not(
    model: Path, known: Manifest, tmp_path: Path
) -> None:
    copy = tmp_path / "other-name.gguf"
    copy.write_bytes(model.read_bytes())
    again = survey.survey(copy, ignore, MIN_PIECE_BYTES)
    assert manifest.identity(again) == manifest.identity(known)
    raw = bytearray(copy.read_bytes())
    raw[-1] ^= 1
    copy.write_bytes(raw)
    assert manifest.identity(survey.survey(copy, ignore, MIN_PIECE_BYTES)) != manifest.identity(
        known
    )


@pytest.mark.parametrize("names", [None, {HEADER}, {"blk.1.ffn_up.weight", "output.weight"}])
def test_pieces_cover_what_is_wanted_and_are_right(
    model: Path, known: Manifest, names: set[str] | None
) -> None:
    raw = model.read_bytes()
    plan = pieces.of_manifest(known, names)
    at = 0
    for piece in plan:
        assert at <= piece.start < piece.end <= len(raw)
        assert piece.size <= MIN_PIECE_BYTES + 64
        assert pieces.wrong(piece, raw[piece.start : piece.end]) == ""
        at = piece.end
    covered = {index for piece in plan for index in range(piece.start, piece.end)}
    for span in known.spans:
        if names is None or span.name in names:
            assert covered >= set(range(span.start, span.end))
    if names is None:
        assert len(covered) == len(raw)
    else:
        assert len(covered) < len(raw) / 2


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_any_changed_byte_is_found(model: Path, known: Manifest, seed: int) -> None:
    chance = random.Random(seed)
    raw = model.read_bytes()
    piece = chance.choice(pieces.of_manifest(known))
    part = bytearray(raw[piece.start : piece.end])
    part[chance.randrange(len(part))] ^= 1 << chance.randrange(8)
    assert pieces.wrong(piece, part)


def test_too_few_bytes_are_found_where_nothing_else_is_known() -> None:
    assert "5 bytes came for 10" in pieces.wrong(Piece(0, 10), bytes(5))
    assert pieces.wrong(Piece(0, 10), bytes(10)) == ""


def test_what_is_damaged_is_named(model: Path, known: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = bytearray(model.read_bytes())
    spans = {span.name: span for span in known.spans}
    raw[spans["blk.1.ffn_up.weight"].start + 7] ^= 1
    raw[spans["output_norm.weight"].end - 1] ^= 1
    path.write_bytes(raw)
    assert set(survey.damaged(path, known, ignore)) == {"blk.1.ffn_up.weight", "output_norm.weight"}
    path.write_bytes(model.read_bytes()[: known.spans[-1].end - 1])
    assert survey.damaged(path, known, ignore) == [known.spans[-1].name]
    path.write_bytes(model.read_bytes() + b"x")
    assert survey.damaged(path, known, ignore) == [f"@{known.size}"]
    path.write_bytes(b"XXXX" + model.read_bytes()[4:])
    assert survey.damaged(path, known, ignore) == [HEADER]


def test_padding_is_zeros_or_a_span_of_its_own(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", layers=1)
    before = survey.survey(path, ignore)
    path.write_bytes(path.read_bytes() + bytes(100) + b"more" + bytes(9))
    after = survey.survey(path, ignore)
    extra = after.names() - before.names()
    assert len(extra) == 1 and extra.pop().startswith("@")
    raw = path.read_bytes()
    for piece in pieces.of_manifest(after):
        assert pieces.wrong(piece, raw[piece.start : piece.end]) == ""
    assert survey.damaged(path, after, ignore) == []


def test_a_large_hole_is_not_fetched() -> None:
    spans = (Span(HEADER, 0, 10, "0" * 64), Span("a", 200_000, 10, "1" * 64))
    plan = pieces.of_manifest(Manifest(200_010, "2" * 64, spans))
    assert [(piece.start, piece.end) for piece in plan] == [(0, 10), (200_000, 200_010)]


def test_what_a_model_says_of_itself() -> None:
    said = survey.describe(bundled.path())
    assert (said.architecture, said.layers) == ("llama", 12)
    assert said.quantisation


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", layers=1, extra=lambda writer: writer.add_uint16("split.count", 3)
    )
    with pytest.raises(ModelError, match="one of the 3 files of a split model"):
        survey.describe(path)


GOOD = Manifest(100, "0" * 64, (Span(HEADER, 0, 10, "0" * 64), Span("a", 32, 8, "0" * 64)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"spans": (GOOD.spans[0], Span("a\x1b[2J", 32, 8, "0" * 64))}, "not printable"),
        ({"piece_bytes": 5}, "pieces have 5 bytes"),
        ({"piece_bytes": 1 << 40}, "pieces have"),
        ({"spans": ()}, "header"),
        ({"spans": GOOD.spans[1:]}, "header"),
        ({"spans": (GOOD.spans[0], Span("a", 5, 8, "0" * 64))}, "over"),
        ({"spans": (*GOOD.spans, Span("a", 50, 8, "0" * 64))}, "same name"),
        ({"spans": (*GOOD.spans, Span("b", 95, 8, "0" * 64))}, "longer"),
        ({"spans": (GOOD.spans[0], Span("a", 32, 8, "0" * 64, ("0" * 64,)))}, "1 pieces"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    bad = msgspec.structs.replace(GOOD, **changes)
    with pytest.raises(PeerError, match=words):
        manifest.decode(manifest.encode(bad), manifest.identity(bad))
    with pytest.raises(PeerError, match="not the one of model"):
        manifest.decode(manifest.encode(GOOD), "f" * 64)


@given(st.binary(max_size=200))
def test_noise_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(PeerError):
        manifest.decode(raw, "0" * 64)
