"""A ring as text: which node holds which layers, in the order in which a token passes them."""

from __future__ import annotations

from typing import Any


def picture(stages: list[dict[str, Any]]) -> list[str]:
    """Draw a ring in text: each stage a row, a bar where its layers lie in the model."""
    if not stages:
        return []
    total = max(stage["last"] for stage in stages)
    width = max(len(stage["name"]) for stage in stages)
    lines = []
    for position, stage in enumerate(stages):
        bar = "".join("█" if stage["first"] <= i < stage["last"] else "·" for i in range(total))
        role = "head" if stage["node"] == stages[0]["node"] else "stage"
        arrow = "▼" if position < len(stages) - 1 else "●"
        span = f"layers {stage['first']}–{stage['last'] - 1}"
        on = f" on {stage['runs_on']}" if stage["runs_on"] else ""
        lines.append(f"  {arrow} {stage['name']:<{width}}  {role:<5}  {bar}  {span}{on}")
    return lines
