"""What the dashboard and the alerts in docs/monitoring/ ask for, and whether it is exported.

For the unit tests, which give it expositions of what the code makes of figures, and for the lab's,
which has those of real agents and of a gateway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[3] / "docs" / "monitoring"
# What Prometheus adds itself, and what the scrape configuration of docs/monitoring.md does.
TARGETS = frozenset({"job", "instance", "mesh", "host", "gateway"})
METRIC = re.compile(r"\b(?:(?:covey|gen_ai|process)_[a-z_]+|up)\b")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b((?:covey|gen_ai|process)_[a-z_]+|up)\b\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_PLACEHOLDER = re.compile(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}")


@dataclass(frozen=True)
class Query:
    """An expression where it stands, and the texts that name its labels."""

    where: str
    expression: str
    texts: tuple[str, ...] = ()


def dashboard() -> dict[str, Any]:
    """Return the Grafana dashboard."""
    found: dict[str, Any] = json.loads((FOLDER / "covey.json").read_text())
    return found


def queries() -> list[Query]:
    """Return all that both files ask."""
    board = dashboard()
    found = [
        Query(panel["title"], target["expr"], (target["legendFormat"],))
        for panel in board["panels"] for target in panel.get("targets", ())
    ]  # fmt: skip
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            expression, label = re.fullmatch(
                r"label_values\((.+), ([a-z_]+)\)", variable["query"]["query"]
            ).groups()  # type: ignore[union-attr]
            found.append(Query(f"${variable['name']}", expression, (f"{{{{{label}}}}}",)))
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            texts = tuple(rule["annotations"].values())
            found.append(Query(rule["alert"], rule["expr"], texts))
    return found


class Exported:
    """The names, labels and their values in expositions."""

    def __init__(self, expositions: Iterable[str]) -> None:
        self.names: set[str] = {"up"}
        self._labels: dict[str, set[str]] = {"up": set()}
        self._values: dict[tuple[str, str], set[str]] = {}
        for text in expositions:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self.names.add(sample.name)
                    self._labels.setdefault(sample.name, set()).update(sample.labels)
                    for label, value in sample.labels.items():
                        self._values.setdefault((sample.name, label), set()).add(value)

    def faults(self, query: Query, *, values: bool) -> list[str]:
        """Say what a query asks for that is not there.

        `values`: also where it compares a label with a value that the expositions do not have.
        """
        expression, found = query.expression, []
        bare = _GROUPING.sub(" ", _STRING.sub('""', expression))
        known: set[str] = set()
        for name in {match[0] for match in METRIC.finditer(_inside_out(bare))}:
            if name not in self.names:
                found.append(f"{query.where}: {name} is not exported")
            known |= self._labels.get(name, set())
        for name, matchers in _SELECTOR.findall(expression):
            for label, operator, value in _MATCHER.findall(matchers):
                if label in TARGETS:
                    continue
                if label not in self._labels.get(name, set()):
                    found.append(f"{query.where}: {name} has no label {label}")
                elif (
                    values and operator in ("=", "!=") and value
                    and value not in self._values[name, label]
                ):  # fmt: skip
                    found.append(f"{query.where}: {label} of {name} is never {value}")
        named = [
            part.strip() for group in _GROUPING.findall(expression) for part in group.split(",")
        ]
        named += [label for text in query.texts for label in _PLACEHOLDER.findall(text)]
        found += [
            f"{query.where}: nothing there has a label {label}"
            for label in named if label not in known | TARGETS
        ]  # fmt: skip
        return found


def _inside_out(expression: str) -> str:
    """Return an expression without what stands in braces: labels' names may look like metrics'."""
    return re.sub(r"\{[^}]*\}", " ", expression)
