"""What a model is for."""

import pytest

from agent.engine.purpose import Purpose, purpose


@pytest.mark.parametrize(
    ("architecture", "pooling", "expected"),
    [
        ("llama", None, "text"),
        ("qwen3", 0, "text"),
        ("qwen3", 3, "embeddings"),
        ("qwen3", 4, "ranks"),
        ("bert", 1, "embeddings"),
        ("bert", 4, "ranks"),
        ("bert", None, "embeddings"),
        ("modern-bert", 0, "embeddings"),
        ("t5encoder", None, "embeddings"),
        ("t5", None, "text"),
    ],
)
def test_it_follows_from_architecture_and_pooling(
    architecture: str, pooling: int | None, expected: Purpose
) -> None:
    assert purpose(architecture, pooling) == expected
