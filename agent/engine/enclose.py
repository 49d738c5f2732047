"""Enclose an engine process before it opens a model: files, rights, system calls.

A GGUF file is made by anybody, and llama.cpp, which reads it, is C++. Whoever takes this process
over through it shall find no key, no other program, and no way to the agent. For `process.py`,
which calls `enclose` once llama.cpp was proven (that starts programs) and before it is loaded. What
this machine's kernel cannot do is told, and is no reason not to run.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import agent
from agent.engine import confine, devices, landlock, reach, splits
from agent.engine.means import Means
from agent.engine.purpose import Purpose
from agent.engine.spec import EngineSpec

_PACKAGES = ("site-packages", "dist-packages")
_THREADS, _HERE = Path("/proc/self/task"), Path("/proc/self/cwd")
_DEVICES = Path("/dev")


def enclose(spec: EngineSpec, purpose: Purpose, found: Means) -> str:
    """Give up all that this engine does not need; returns in words what it could not give up."""
    if not spec.confined:
        return "engine.confine is off"
    missing = confine.no_new_rights()
    alone = len([*_THREADS.iterdir()]) == 1
    why = landlock.restrict(reach.allowed(_facts(spec, found)))
    if why or not alone:
        missing.append(f"files: {why or 'threads that ran before keep them'}")
    missing += confine.give_up_rights(reads_all=os.geteuid() == 0)
    # What makes no text is in no ring, and calls nobody.
    missing += confine.filter_calls(connects=purpose == "text")
    return "; ".join(missing)


def close_door(spec: EngineSpec) -> None:
    """Make and take no connection any more: a stage has met its neighbours for good."""
    if spec.confined:
        confine.filter_calls(connects=False, accepts=False)


def _facts(spec: EngineSpec, found: Means) -> reach.Facts:
    names = filter(None, (*spec.files, spec.draft_file, *spec.later))
    models = [path for name in names for path in splits.siblings(Path(name))]
    nodes: list[Path] = []
    kernels: Path | None = None
    if found.gpu_layers:
        nodes = [path for pattern in reach.GPU_NODES for path in _DEVICES.glob(pattern)]
        if spec.cache:
            kernels = devices.kernels(Path(spec.cache))
            with contextlib.suppress(OSError):  # then they are compiled each time
                kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = [Path(spec.cache).parent] if spec.cache else []
    with contextlib.suppress(RuntimeError):  # a user without a home
        kept.append(Path.home())
    return reach.Facts(
        models=tuple(map(os.path.abspath, models)),
        code=tuple(dict.fromkeys(map(os.path.realpath, _code()))),
        kept=tuple(map(os.path.realpath, kept)),
        nodes=tuple(map(str, nodes)),
        kernels=str(kernels or ""),
    )


def _code() -> Iterator[str | Path]:
    """Give the folders from which Python and what it loads take code."""
    yield Path(agent.__file__).parent
    if (llama := devices.library_folder()) is not None:
        yield llama.parent
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix):
        yield from (Path(prefix, name) for name in ("lib", "lib64"))
    yield Path(os.__file__).parent
    # `python -m` looks first in the folder where it was started, which may be anything; and a
    # checkout of Covey has more than its code.
    here = str(_HERE.readlink())
    for path in map(Path, sys.path):
        checkout = path.name not in _PACKAGES and _has_agent(path)
        if path.is_absolute() and os.path.realpath(path) != here and not checkout:
            yield path
    for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if entry.startswith("/"):
            yield entry


def _has_agent(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # it may not look there
        return (folder / "agent/__init__.py").is_file()
    return False
