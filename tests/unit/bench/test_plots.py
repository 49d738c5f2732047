"""The drawings of benches' results: each figure is there, to scale, within its axis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import plots
from tests.bench.report import row

SVG = "{http://www.w3.org/2000/svg}"


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"bench": "ring", "conditions": {"cpu": "A <&>", "load_at_end": 0.5}, "rows": rows}


def drawn(rows: list[dict[str, Any]]) -> ElementTree.Element:
    return ElementTree.fromstring(plots.draw(result(rows)))


def of_class(svg: ElementTree.Element, kind: str, tag: str = "rect") -> list[ElementTree.Element]:
    return [found for found in svg.iter(SVG + tag) if found.get("class") == kind]


def test_bars_are_to_scale_within_a_unit() -> None:
    svg = drawn([
        row("one", 10, "tokens/s", peer=5, goal=8, higher=True),
        row("two", 2.5, "tokens/s", goal=5, higher=True),
        row("late", 400, "ms"),
    ])  # fmt: skip
    first, late = (float(found.get("width", "")) for found in of_class(svg, "ours"))
    (short,) = (float(found.get("width", "")) for found in of_class(svg, "missed"))
    (peer,) = (float(found.get("width", "")) for found in of_class(svg, "peer"))
    assert first == pytest.approx(4 * short) == pytest.approx(2 * peer) == pytest.approx(late)
    strokes = [float(found.get("x1", "")) - plots.NAMES for found in of_class(svg, "goal", "line")]
    assert strokes == pytest.approx([first * 0.8, first * 0.5])


def test_who_cannot_see_it_is_told_the_figures() -> None:
    svg = drawn([row("one", 10, "tokens/s", peer=5, goal=8)])
    described = svg.find(SVG + "desc")
    assert described is not None and described.text == "one: 10 tokens/s, peer 5, goal 8"


@given(
    st.lists(
        st.builds(
            lambda name, value, unit, peer, goal: row(name, value, unit, peer=peer, goal=goal),
            st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
            st.floats(0, 1e9),
            st.sampled_from(["ms", "<b>", "MB & more"]),
            st.none() | st.floats(0, 1e9),
            st.none() | st.floats(0, 1e9),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_the_rows_are_it_is_a_drawing(rows: list[dict[str, Any]]) -> None:
    svg = drawn(rows)
    assert len(of_class(svg, "name", "text")) == len(rows)
    room = plots.WIDTH - plots.FIGURES
    for bar in (*of_class(svg, "ours"), *of_class(svg, "missed"), *of_class(svg, "peer")):
        assert plots.NAMES + float(bar.get("width", "")) <= room + 0.1
    _, _, _, height = (float(number) for number in svg.get("viewBox", "").split())
    assert all(float(text.get("y", "")) < height for text in svg.iter(SVG + "text"))


def test_a_file_is_drawn_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "ring.json"
    file.write_text(json.dumps(result([row("one", 1, "ms")])))
    assert plots.main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert ElementTree.parse(tmp_path / "out" / "ring.svg")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 1}'])
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, capsys) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    assert plots.main([str(file), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


FIGURES = sorted((Path(__file__).parents[3] / "docs" / "figures").glob("*.json"))


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.stem)
def test_drawings_in_docs_are_those_of_the_results_beside_them(file: Path) -> None:
    assert file.with_suffix(".svg").read_text() == plots.draw(json.loads(file.read_text()))


def test_each_result_in_docs_is_drawn() -> None:
    assert FIGURES
    folder = FIGURES[0].parent
    assert {path.stem for path in folder.glob("*.svg")} == {path.stem for path in FIGURES}
