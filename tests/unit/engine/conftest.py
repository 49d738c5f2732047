"""What several tests of the engine share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Modules beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_models import write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives a model with these properties, made once a run."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[tuple[tuple[str, object], ...], Path] = {}

    def model(**properties: object) -> Path:
        key = tuple(sorted(properties.items()))
        if key not in made:
            made[key] = write_model(folder / f"model-{len(made)}.gguf", **properties)  # type: ignore[arg-type]
        return made[key]

    return model
