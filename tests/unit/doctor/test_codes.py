"""docs/troubleshooting.md explains every code that an item can have, and none that is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.checks import CODES

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "troubleshooting.md"
# A row of the table of codes: | `code` | …
ROW = re.compile(r"^\| `([a-z0-9-]+)` \|", re.M)


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Return the names that a module gives to texts: `A = "a"`, `A, B = "a", "b"`."""
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        (target,) = node.targets
        pairs = (
            zip(target.elts, node.value.elts, strict=False)
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            else [(target, node.value)]
        )
        for name, value in pairs:
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                yield name.id, str(value.value)


def codes() -> set[str]:
    """Return the code of each HealthItem that is made anywhere in the agent."""
    found = set()
    for path in sorted((ROOT / "agent").rglob("*.py")):
        source = path.read_text()
        if "HealthItem(" not in source:
            continue
        tree = ast.parse(source)
        known = dict(constants(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "HealthItem":
                continue
            first = node.args[0]
            code = known.get(first.id) if isinstance(first, ast.Name) else ast.literal_eval(first)
            assert isinstance(code, str), f"{path}:{node.lineno} has a code that is not plain"
            found.add(code)
    return found


def test_the_document_has_a_row_for_each_code_and_for_no_other() -> None:
    rows = ROW.findall(DOCUMENT.read_text())
    assert len(rows) == len(set(rows))
    assert set(rows) == codes()


def test_codes_are_found_where_items_are_made() -> None:
    assert codes() > CODES
    assert codes() > {"acl-file", "relay-no-ports", "overlay-down", "certificate-ends"}
