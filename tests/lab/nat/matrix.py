"""Every kind of site against every other, both ways of starting: what route, after what time.

    with Matrix(["easy", "hard", "lan"]) as matrix:
        cells = list(matrix.run(connect))
    Path("nat-matrix.txt").write_text(text(cells))
    Path("nat-matrix.html").write_text(page(cells))

`connect(starter, other)` is all that a way of connecting has to bring: it makes the two ends talk,
the first one beginning, and says what came of it. What it needs besides (agents on all ends, the
rendezvous) it finds in the Matrix, before `run` or in it.
"""

from __future__ import annotations

import enum
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from agent.demo.natlab import NatLab, NatMachine, Site
from agent.demo.natrules import KINDS


class Route(enum.Enum):
    """How the packets of a pair go in the end, best first."""

    LAN = "lan"
    IPV6 = "ipv6"
    OPEN = "open"  # a public or a port-mapped IPv4 address
    PUNCHED = "punched"
    RELAYED = "relayed"
    NONE = "none"


@dataclass(frozen=True)
class End:
    """One end of a pair."""

    site: Site
    machine: NatMachine


@dataclass(frozen=True)
class Result:
    """What came of it: the seconds to the first packet that crossed, and to the first direct one.

    None is never. `note` is a line for people.
    """

    route: Route
    first_s: float | None
    direct_s: float | None
    note: str = ""


Connect = Callable[[End, End], Result]


@dataclass(frozen=True)
class Cell:
    """The result of a pair of kinds, of which `starter` began."""

    starter: str
    other: str
    result: Result


class Matrix:
    """An internet with two sites of every kind, or one with two machines, and rendezvous."""

    def __init__(self, kinds: Sequence[str], *, rendezvous: int = 2) -> None:
        self.kinds = list(kinds)
        self.lab = NatLab()
        self.rendezvous = [self.lab.add(f"r{n + 1}", "public") for n in range(rendezvous)]
        self._ends = {name: self._pair(name) for name in self.kinds}

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.close()

    def _pair(self, name: str) -> tuple[End, End]:
        if KINDS[name].together:
            site = self.lab.add(name, name, machines=2)
            return End(site, site.machines[0]), End(site, site.machines[1])
        # An interface is named after its machine, and Linux allows 15 characters.
        left, right = (self.lab.add(f"{name}{side}", name) for side in "12")
        return End(left, left.machines[0]), End(right, right.machines[0])

    def ends(self) -> list[End]:
        """Return all ends: whatever must run on a machine before `run` runs on these."""
        return [end for pair in self._ends.values() for end in pair]

    def pairs(self) -> Iterator[tuple[str, str, End, End]]:
        """Yield each ordered pair of kinds with its ends, who starts first.

        Two kinds are the same two machines both ways; a kind with itself is once.
        """
        for row, starter in enumerate(self.kinds):
            for column, other in enumerate(self.kinds):
                side = 0 if row <= column else 1
                yield starter, other, self._ends[starter][side], self._ends[other][1 - side]

    def run(self, connect: Connect, beginners: Sequence[str] | None = None) -> Iterator[Cell]:
        """Connect each ordered pair, one after the other, and yield what came of it.

        Only those that one of the `beginners` begins, if they are given.
        """
        for starter, other, one, two in self.pairs():
            if beginners is None or starter in beginners:
                yield Cell(starter, other, connect(one, two))


# -- tables


def text(cells: Sequence[Cell]) -> str:
    """Return a table of routes, one of times, and the sum of both."""
    return "\n\n".join([
        _grid("route (rows begin)", cells, lambda result: result.route.value),
        _grid("first packet / direct, s", cells, _times),
        *_notes(cells), _sum(cells),
    ]) + "\n"  # fmt: skip


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3em .6em; border: 1px solid #ccc; text-align: center; }}
th {{ font-weight: 600; }}
small {{ display: block; color: #444; font-variant-numeric: tabular-nums; }}
.lan, .ipv6, .open {{ background: #cdebc8; }} .punched {{ background: #e4f3c0; }}
.relayed {{ background: #fbe3b0; }} .none {{ background: #f5c0b8; }}
</style>
<h1>{title}</h1>
<p>Each row begins. Below the route: seconds to the first packet / to the first direct one.</p>
<table>
{table}
</table>
<dl>
{kinds}
</dl>
<p>{total}</p>
</html>
"""


def page(cells: Sequence[Cell], title: str = "Kinds of NAT, both ways") -> str:
    """Return the same as one HTML page; a result's note shows where the pointer rests."""
    names, at = _axes(cells)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = [f"<tr><th></th>{head}</tr>"]
    for row in names:
        line = [f'<tr><th scope="row">{escape(row)}</th>']
        for column in names:
            result = at.get((row, column))
            if result is None:
                line.append("<td></td>")
                continue
            note = f' title="{escape(result.note)}"' if result.note else ""
            line.append(f'<td class="{result.route.value}"{note}>{result.route.value}'
                        f"<small>{_times(result)}</small></td>")  # fmt: skip
        lines.append("".join(line) + "</tr>")
    kinds = [f"<dt>{escape(name)}</dt><dd>{escape(KINDS[name].text)}</dd>" for name in names]
    return _PAGE.format(title=escape(title), table="\n".join(lines), kinds="\n".join(kinds),
                        total=escape(_sum(cells)))  # fmt: skip


def _axes(cells: Sequence[Cell]) -> tuple[list[str], dict[tuple[str, str], Result]]:
    """Return the kinds in the order they came, and the results by pair."""
    names = dict.fromkeys(name for cell in cells for name in (cell.starter, cell.other))
    return list(names), {(cell.starter, cell.other): cell.result for cell in cells}


def _grid(title: str, cells: Sequence[Cell], show: Callable[[Result], str]) -> str:
    names, at = _axes(cells)
    rows = [[title, *names]]
    for row in names:
        results = [at.get((row, column)) for column in names]
        rows.append([row, *("" if result is None else show(result) for result in results)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _times(result: Result) -> str:
    return f"{_seconds(result.first_s)}/{_seconds(result.direct_s)}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _notes(cells: Sequence[Cell]) -> list[str]:
    lines = [f"{cell.starter} → {cell.other}: {cell.result.note}"
             for cell in cells if cell.result.note]  # fmt: skip
    return ["\n".join(lines)] if lines else []


def _sum(cells: Sequence[Cell]) -> str:
    routes = Counter(cell.result.route for cell in cells)
    parts = [f"{routes[route]} {route.value}" for route in Route if routes[route]]
    said = [f"{len(cells)} pairs: {', '.join(parts)}"]
    for name, times in (
        ("first packet", [cell.result.first_s for cell in cells]),
        ("direct", [cell.result.direct_s for cell in cells]),
    ):
        known = [value for value in times if value is not None]
        if known:
            said.append(
                f"{name}: median {statistics.median(known):.2f} s, slowest {max(known):.2f} s"
            )
    return "; ".join(said) + "."
