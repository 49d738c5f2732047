"""Import a package's submodules without its package module, which imports all of them.

What one part of a large package needs is often a tenth of it. `hollow` puts an empty package in the
place of the real one, through which Python finds the same submodules; whoever asks it for anything
else gets the real one, which is then imported after all.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def hollow(name: str) -> None:
    """Make a package's submodules importable one by one; raises ImportError without the package.

    A package that has been imported stays as it is.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader, package = spec.loader, ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    package.__file__ = spec.origin

    def fill(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if importlib.util.find_spec(f"{name}.{attribute}") is not None:
            return importlib.import_module(f"{name}.{attribute}")
        del vars(package)["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = fill
    sys.modules[name] = package
