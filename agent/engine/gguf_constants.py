"""What GGUF's numbers mean, out of the package gguf, without the rest of it. A core.

Its package module imports writers, readers and numpy: a tenth of a second and 10 MB for an agent,
which has no use for them.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from gguf.constants import (
        GGML_QUANT_SIZES,
        GGMLQuantizationType,
        GGUFValueType,
        LlamaFileType,
    )

__all__ = ["GGML_QUANT_SIZES", "GGMLQuantizationType", "GGUFValueType", "LlamaFileType"]


def _load() -> ModuleType:
    package = importlib.util.find_spec("gguf")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
    # A name of our own: the package's modules, where somebody imports them, keep theirs.
    loader = SourceFileLoader(
        f"{__name__}.whole", str(Path(package.origin).with_name("constants.py"))
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(cast("ModuleSpec", spec))
    loader.exec_module(module)
    return module


if not TYPE_CHECKING:
    _constants = _load()
    GGML_QUANT_SIZES = _constants.GGML_QUANT_SIZES
    GGMLQuantizationType = _constants.GGMLQuantizationType
    GGUFValueType = _constants.GGUFValueType
    LlamaFileType = _constants.LlamaFileType
