"""One appliance, built, started from BIOS, joins and answers: short, so that it is tested always.

In `make test` too. Its llama.cpp is a plain one, which is built in a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from answered import check, run
from imagebuild import build


@pytest.mark.timeout(1800)
def test_an_appliance_joins_and_answers(tmp_path: Path, expected: str) -> None:
    image = tmp_path / "covey.img"
    build(image, "--plain")
    check(run(image, tmp_path, 1), 1, expected)
