"""Loads modules of the folder ansible/, which is no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3] / "ansible"


def load(place: str) -> ModuleType:
    """Return the module at a path below ansible/."""
    path = ROOT / place
    spec = importlib.util.spec_from_file_location(f"ansible_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
