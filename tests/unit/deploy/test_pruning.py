"""Old parts of models go, the last ones and those in use stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.deploy import pruning
from agent.deploy.pruning import SPARE_BYTES, YOUNG_S, Kept, doomed

NOW = 1e9
sizes = st.integers(0, 2 * SPARE_BYTES)
ages = st.floats(0, 100 * YOUNG_S)


@given(st.lists(st.tuples(sizes, ages, st.booleans()), max_size=12))
def test_what_is_used_or_young_stays_and_the_rest_fits_in_its_room(
    drawn: list[tuple[int, float, bool]],
) -> None:
    parts = [
        Kept(Path(f"/parts/{number}.gguf"), size, NOW - age)
        for number, (size, age, _) in enumerate(drawn)
    ]
    used = {part.path for part, (_, _, is_used) in zip(parts, drawn, strict=True) if is_used}
    gone = doomed(parts, used, NOW)
    assert not used.intersection(gone)
    by_path = {part.path: part for part in parts}
    assert all(NOW - by_path[path].used_at >= YOUNG_S for path in gone)
    room = max(SPARE_BYTES, sum(by_path[path].size for path in used))
    stay = [part for part in parts if part.path not in used and part.path not in gone]
    old = [part for part in stay if NOW - part.used_at >= YOUNG_S]
    # What stays and is old fits, beside all that was used later.
    for part in old:
        later = [p for p in parts if p.path not in used and p.used_at > part.used_at]
        assert sum(p.size for p in later) + part.size <= room
    # Whatever goes would not have fitted.
    for path in gone:
        later = [p for p in parts if p.path not in used and p.used_at >= by_path[path].used_at]
        assert sum(p.size for p in later) > room


def test_files_go_by_when_they_were_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "SPARE_BYTES", 150)
    paths = [tmp_path / f"{name}.gguf" for name in "abcd"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(100))
        long_ago = time.time() - (10 - number) * YOUNG_S
        os.utime(path, (long_ago, long_ago))
    (tmp_path / "new.part").write_bytes(bytes(500))
    pruning.prune(tmp_path, {paths[0]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "d.gguf", "new.part"]
    assert time.time() - paths[0].stat().st_mtime < 60  # it is in use now
    pruning.prune(tmp_path / "none", ())
