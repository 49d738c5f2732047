"""What several tests of the engine share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

# Modules beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))

import bert_models
from bert_models import Bert
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


@pytest.fixture(scope="session")
def minilm() -> Bert:
    """Return all-MiniLM-L6-v2 as its package has it."""
    return bert_models.minilm()


@pytest.fixture(scope="session")
def minilm_file(minilm: Bert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return it as a GGUF file."""
    path = tmp_path_factory.mktemp("minilm") / "all-minilm-l6-v2.gguf"
    return minilm.write(path, gguf.PoolingType.MEAN)
