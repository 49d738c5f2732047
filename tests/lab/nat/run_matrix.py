"""The whole matrix of NATs with agents: tables of route and time, as text and HTML.

    python -m agent.demo.sandbox -- python tests/lab/nat/run_matrix.py [KIND …] [--out FOLDER]

All kinds that the lab knows take some 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from matrix import Matrix, Route, page, text
from nat_agents import NatMesh

from agent.demo.natrules import KINDS


def main() -> int:
    """Run, print the table, write both files; 1 if a pair carries nothing."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("kinds", nargs="*", default=list(KINDS), help="which kinds; default: all")
    flags.add_argument("--out", type=Path, default=Path("build"), help="where the tables go")
    arguments = flags.parse_args()
    unknown = [kind for kind in arguments.kinds if kind not in KINDS]
    if unknown:
        flags.error(f"{unknown[0]!r} is no kind of NAT; there are {', '.join(KINDS)}")
    cells = []
    with tempfile.TemporaryDirectory() as folder, Matrix(arguments.kinds) as matrix:
        mesh = NatMesh(Path(folder), matrix.lab, matrix.rendezvous)
        mesh.join([end.machine.name for end in matrix.ends()])
        for cell in matrix.run(mesh.connect):
            cells.append(cell)
            print(f"{cell.starter} → {cell.other}: {cell.result}", file=sys.stderr, flush=True)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "nat-matrix.txt").write_text(text(cells))
    (arguments.out / "nat-matrix.html").write_text(page(cells))
    print(text(cells))
    return int(any(cell.result.route is Route.NONE for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
