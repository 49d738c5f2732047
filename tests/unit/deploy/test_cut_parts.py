"""Parts are cut once, as long as the model's file is the same and they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.deploy.parts import Parts
from agent.engine import cut
from agent.engine.gguf_file import GgufFile
from agent.models import bundled

RANGES = [(0, 2), (2, 5), (5, 8)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(bundled.path().read_bytes())
    return path


def test_a_part_is_named_by_its_content_and_cut_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path / "parts")
    first = parts.cut(model, RANGES, "ab" * 16)
    assert [part.path.name for part in first] == [f"{part.sha256}.gguf" for part in first]
    assert all(part.path.stat().st_size == part.size for part in first)
    written: list[tuple[int, int]] = []
    real = cut.write_part

    def write(file: object, start: int, stop: int, path: Path) -> cut.PartFile:
        written.append((start, stop))
        return real(file, start, stop, path)  # type: ignore[arg-type] # as it came

    monkeypatch.setattr(cut, "write_part", write)
    assert parts.cut(model, RANGES, "cd" * 16) == first
    assert written == []
    # Another cut writes what is new in it.
    other = parts.cut(model, [(0, 2), (2, 8)], "ab" * 16)
    assert (written, other[0]) == ([(2, 8)], first[0])


def test_what_is_gone_or_of_a_file_that_changed_is_cut_again(tmp_path: Path, model: Path) -> None:
    parts = Parts(tmp_path / "parts")
    first = parts.cut(model, RANGES, "ab" * 16)
    first[1].path.unlink()
    assert parts.cut(model, RANGES, "ab" * 16) == first
    assert first[1].path.is_file()
    with GgufFile(model) as file:
        (at, *_) = (tensor.start for tensor in file.tensors if tensor.layer == 7)
    data = bytearray(model.read_bytes())
    data[at] ^= 1
    model.write_bytes(data)
    os.utime(model, (1, 1))
    changed = parts.cut(model, RANGES, "ab" * 16)
    assert [a == b for a, b in zip(changed, first, strict=True)] == [True, True, False]
