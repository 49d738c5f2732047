"""Draws what benches wrote: one SVG for each JSON file, without a library.

    python tests/bench/plots.py build/gateway.json … --out docs/figures

Rows of one unit share an axis that begins at 0. A bar is Covey's figure, the thin one below it the
peer's of the same run, a stroke across both the goal. A reader's dark mode is followed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

# All in px of the drawing, which scales.
WIDTH, NAMES, FIGURES = 960, 400, 110
ROW, HEAD, FOOT, LINE = 30, 46, 22, 16
# What is less is nothing: a scale for it would be beyond all numbers.
_LEAST = 1e-9
_LEGEND = "bar: Covey (orange: short of its goal) · thin: peer · stroke: goal"
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2430; }
.head { font-weight: 600; font-size: 15px; } .unit { font-weight: 600; fill: #5b6472; }
.small { font-size: 11px; fill: #5b6472; }
.ours { fill: #2f6fde; } .missed { fill: #d9822b; } .peer { fill: #9aa3b2; }
.goal { stroke: #1f2430; stroke-width: 2; stroke-dasharray: 3 2; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8eaf0; } .unit, .small { fill: #a5adba; } .ground { fill: #14171d; }
  .ours { fill: #6ea0ff; } .missed { fill: #f0a35e; } .peer { fill: #6b7382; }
  .goal { stroke: #e8eaf0; }
}
"""


def draw(result: Mapping[str, Any]) -> str:
    """Return the SVG of a bench's result, as `report.finish` writes it."""
    parts: list[str] = []
    top = HEAD
    # The sort is stable, so rows keep their order within a unit.
    order = {unit: at for at, unit in enumerate(dict.fromkeys(r["unit"] for r in result["rows"]))}
    rows = sorted(result["rows"], key=lambda r: order[r["unit"]])
    for unit, group in groupby(rows, key=lambda r: r["unit"]):
        top = _axis(parts, unit, list(group), top)
    foot = _lines(result["conditions"])
    height = top + FOOT + LINE * len(foot)
    for number, line in enumerate(foot):
        parts.append(_text(12, top + LINE * (number + 1), line, "small"))
    name = escape(str(result["bench"]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="t d">\n<title id="t">{name}</title>\n'
        f'<desc id="d">{escape(_described(rows))}</desc>\n<style>{_STYLE}</style>\n'
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>\n'
        + _text(12, 28, str(result["bench"]), "head")
        + _text(NAMES, 28, _LEGEND, "small")
        + "".join(parts)
        + "</svg>\n"
    )  # fmt: skip


def _axis(parts: list[str], unit: str, rows: Sequence[Mapping[str, Any]], top: int) -> int:
    """Draw the rows of one unit below `top`; return where they end."""
    most = max((r[k] or 0) for r in rows for k in ("value", "peer", "goal"))
    if most < _LEAST:
        most = 1
    scale = (WIDTH - NAMES - FIGURES) / most
    parts.append(_text(12, top + 14, unit, "unit"))
    top += 22
    for r in rows:
        parts.append(_text(12, top + 15, _short(r["name"]), "name"))
        kind = "missed" if r["met"] is False else "ours"
        parts.append(_bar(top + 4, 12, r["value"] * scale, kind))
        if r["peer"] is not None:
            parts.append(_bar(top + 17, 5, r["peer"] * scale, "peer"))
        if r["goal"] is not None:
            at = NAMES + r["goal"] * scale
            parts.append(
                f'<line class="goal" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + 24}"/>\n'
            )
        end = NAMES + max(r[k] or 0 for k in ("value", "peer", "goal")) * scale
        parts.append(_text(end + 8, top + 15, _figure(r["value"]), "figure"))
        top += ROW
    return top + 6


def _bar(top: int, height: int, width: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{max(width, 0.0):.1f}" '
        f'height="{height}" rx="2"/>\n'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.0f}">{escape(text)}</text>\n'


def _figure(value: float) -> str:
    """Return a figure with as many digits as a reader compares."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(name: str, most: int = 58) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _described(rows: Sequence[Mapping[str, Any]]) -> str:
    def one(r: Mapping[str, Any]) -> str:
        peer = "" if r["peer"] is None else f", peer {r['peer']:g}"
        goal = "" if r["goal"] is None else f", goal {r['goal']:g}"
        return f"{r['name']}: {r['value']:g} {r['unit']}{peer}{goal}"

    return "; ".join(one(r) for r in rows)


def _lines(conditions: Mapping[str, object], most: int = 150) -> list[str]:
    """Return the conditions as lines of so many letters."""
    lines = [""]
    for key, value in conditions.items():
        piece = f"{key.replace('_', ' ')}: {value}"
        if lines[-1] and len(lines[-1]) + len(piece) > most:
            lines.append("")
        lines[-1] += (" · " if lines[-1] else "") + piece
    return [_short(line, most) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the files that are named; 2 and one line for one that is no bench's result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    wanted = parser.parse_args(arguments)
    wanted.out.mkdir(parents=True, exist_ok=True)
    for file in wanted.files:
        try:
            drawn = draw(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{file} is no bench's result ({error}).", file=sys.stderr)
            return 2
        (wanted.out / f"{file.stem}.svg").write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
