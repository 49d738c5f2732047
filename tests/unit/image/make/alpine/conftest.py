"""A mirror's folder for the tests here, and the folder with its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.unit.image.make.alpine.mirrors import KEY_NAME, KEYS, Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "mirror")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The folder with the public key that the packages are signed with."""
    folder = tmp_path / "keys"
    folder.mkdir()
    pem = KEYS[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / KEY_NAME).write_bytes(pem)
    return folder
