"""Two appliances join, run the bundled model across both, and a gateway answers from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from answered import check, run

# On two emulated cores two machines start and load at once; other work takes its part.
pytestmark = pytest.mark.timeout(1800)


def test_two_appliances_answer_together(image: Path, tmp_path: Path, expected: str) -> None:
    check(run(image, tmp_path, 2), 2, expected)


def test_a_machine_without_avx_answers(image: Path, tmp_path: Path, expected: str) -> None:
    check(run(image, tmp_path, 1, "Nehalem"), 1, expected)
