"""The whole matrix of NATs with agents: tables of route and time, as text and HTML.

    python -m agent.demo.sandbox -- python tests/lab/nat/run_matrix.py [KIND …] [--begin KIND …]

All kinds that the lab knows take some 20 minutes. With --begin only the pairs which those begin are
connected, in a mesh that has all the others as well, which are off.
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
    flags.add_argument(
        "--begin", nargs="+", metavar="KIND", help="who begins; default: each of them"
    )
    flags.add_argument("--out", type=Path, default=Path("build"), help="where the tables go")
    arguments = flags.parse_args()
    beginners = arguments.begin or arguments.kinds
    for kinds, there in ((arguments.kinds, list(KINDS)), (beginners, arguments.kinds)):
        for kind in kinds:
            if kind not in there:
                flags.error(f"{kind!r} is no kind of NAT here; there are {', '.join(there)}")
    cells = []
    with tempfile.TemporaryDirectory() as folder, Matrix(arguments.kinds) as matrix:
        mesh = NatMesh(Path(folder), matrix.lab, matrix.rendezvous)
        mesh.join([end.machine.name for end in matrix.ends()])
        for cell in matrix.run(mesh.connect, beginners):
            cells.append(cell)
            print(f"{cell.starter} → {cell.other}: {cell.result}", file=sys.stderr, flush=True)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "nat-matrix.txt").write_text(text(cells))
    (arguments.out / "nat-matrix.html").write_text(page(cells))
    print(text(cells))
    return int(any(cell.result.route is Route.NONE for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
