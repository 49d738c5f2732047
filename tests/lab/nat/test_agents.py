"""Members behind every pair of NATs reach each other, whoever starts: real agents, real WireGuard.

Five kinds here; `tests/lab/nat/run_matrix.py` runs all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import Matrix, Route, page, text
from nat_agents import NatMesh

KINDS = ["public", "easy", "hard", "lan", "blocked"]
# What a pair must come to; anything better is fine as well.
DIRECT = {
    frozenset({"public"}), frozenset({"public", "easy"}), frozenset({"public", "hard"}),
    frozenset({"public", "lan"}), frozenset({"easy"}), frozenset({"easy", "lan"}),
    frozenset({"lan"}),
}  # fmt: skip


@pytest.mark.timeout(900)
def test_every_pair_carries_traffic(tmp_path: Path) -> None:
    with (
        Matrix(KINDS) as matrix,
        NatMesh(tmp_path, matrix.lab, matrix.rendezvous) as mesh,
    ):
        mesh.join([end.machine.name for end in matrix.ends()])
        cells = list(matrix.run(mesh.connect))
    print(text(cells))
    assert "relayed" in page(cells)
    for cell in cells:
        name = f"{cell.starter} → {cell.other}"
        assert cell.result.first_s is not None, f"{name} carries nothing: {cell.result.note}"
        if {cell.starter, cell.other} in DIRECT:
            assert cell.result.direct_s is not None, f"{name} stays relayed: {cell.result.note}"
        if cell.result.route is Route.RELAYED:
            assert cell.result.note, f"{name} is relayed without a word why"
