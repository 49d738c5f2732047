"""The rules of docs/contributing.md for image/: cores do no I/O, and nothing needs the daemon."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
IO_MODULES = frozenset(
    "socket asyncio trio aiohttp subprocess threading select ssl http urllib time secrets os sys "
    "signal tempfile shutil mmap fcntl multiprocessing concurrent pathlib random".split()
)
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path.read_text()
    for path in sorted((ROOT / "image").rglob("*.py"))
}
CORES = {
    name for name, text in SOURCES.items() if "A core" in (ast.get_docstring(ast.parse(text)) or "")
}


def imported(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_every_module_is_a_core_or_says_that_it_is_a_shell() -> None:
    packages = {"image", "image.node", "image.disk"}
    docstrings = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in SOURCES.items()}
    shells = {name for name, text in docstrings.items() if "A shell" in text}
    assert SOURCES.keys() - packages - shells == CORES
    assert shells == {"image.disk.write", "image.disk.bootfiles"}


def test_a_core_does_no_io() -> None:
    found = {(n, i) for n in CORES for i in imported(n) if i.split(".")[0] in IO_MODULES}
    assert found == set()


def test_a_core_imports_cores() -> None:
    ours = {(n, i) for n in CORES for i in imported(n) if i in SOURCES}
    assert {i for _, i in ours} <= CORES | {"image.node", "image.disk"}


def test_of_the_agent_only_errors_names_and_tickets_are_needed() -> None:
    found = {i for name in SOURCES for i in imported(name) if i.startswith("agent.")}
    allowed = (
        "agent.errors",
        "agent.endpoint",
        "agent.membership.naming",
        "agent.membership.ticket",
    )
    assert {i for i in found if not i.startswith(allowed)} - {"agent.membership"} == set()
