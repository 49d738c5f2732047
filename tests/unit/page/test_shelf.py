"""Which models there are and could be."""

from __future__ import annotations

import msgspec

from agent.page.shelf import File, Room, Shelf, shelf

MODEL = {
    "name": "m", "here": False, "phase": "elsewhere", "size": 7, "quantisation": "",
    "layers": None, "elsewhere": ["alpha"], "used_by": None, "source": "/secret", "sha256": "",
}  # fmt: skip
CATALOGUE = {
    "workers": [{"node": "12D3", "name": "alpha", "free_bytes": 100}],
    "models": [
        {
            "name": "big", "title": "Big", "architecture": "llama", "parameters": 8,
            "shape": {"layers": 32, "context": 4096, "heads": 4}, "bundled": False,
            "cuttable": True, "uncut": "",
            "files": [{"quantisation": "Q8_0", "source": "hf:x", "parts": 1, "bytes": 50,
                       "exact": True, "seen": True, "nodes": ["alpha"], "engine": "ring",
                       "missing_bytes": 0, "fit": "fits one node (alpha)"}],
        }
    ],
}  # fmt: skip


def test_it_is_what_store_and_catalogue_come_to() -> None:
    found = shelf([MODEL], CATALOGUE)
    assert found.workers == [Room("alpha", 100)]
    [kept], [known] = found.kept, found.known
    assert (kept.name, kept.here, kept.elsewhere, kept.used_by) == ("m", False, ["alpha"], "")
    assert (known.layers, known.context) == (32, 4096)
    assert known.files == [File("Q8_0", 50, ["alpha"], "fits one node (alpha)", 0)]
    assert msgspec.convert(msgspec.to_builtins(found), Shelf) == found


def test_where_a_file_lies_is_left_out() -> None:
    assert b"/secret" not in msgspec.json.encode(shelf([MODEL], CATALOGUE))
