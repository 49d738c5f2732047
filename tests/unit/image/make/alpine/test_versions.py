"""Versions are ordered as apk orders them."""

from __future__ import annotations

import pytest

from agent.errors import EnvironmentFault
from image.make.alpine import versions

# From the oldest to the newest.
ORDERED = (
    "0.9", "1.01-r0", "1.1-r0", "1.2_alpha", "1.2_alpha2", "1.2_beta", "1.2_pre3", "1.2_rc1",
    "1.2", "1.2-r0", "1.2-r1", "1.2-r10", "1.2_git20240101", "1.2_p1", "1.2_p1-r1", "1.2a", "1.2b",
    "1.2.0", "1.2.3", "1.10", "3.12.11-r0", "20240909-r0",
)  # fmt: skip


def test_the_newer_is_greater() -> None:
    keys = [versions.key(version) for version in ORDERED]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("version", ["", "one", "1.", "1.2_what1", "1.2-r", "1.2 "])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(EnvironmentFault, match="is no version"):
        versions.key(version)


def test_a_finer_version_of_another() -> None:
    assert versions.begins_with("3.12.1-r0", "3.12")
    assert versions.begins_with("3.12", "3.12")
    assert not versions.begins_with("3.120", "3.12")
    assert not versions.begins_with("3.1", "3.12")
