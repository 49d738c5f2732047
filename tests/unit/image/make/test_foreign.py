"""Which of the pinned packages another Python has, and from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.make import foreign
from image.make.foreign import Target

MUSL = Target("3.12", "x86_64", "musllinux_1_2_x86_64")
TEXT = """\
# A comment.
one==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
old==1.0 ; python_full_version < '3.12' \\
    --hash=sha256:cc
new[extra]==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
windows==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:ee
arm==1.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:ff
"""


def test_what_a_python_has_with_all_hashes() -> None:
    assert dict(foreign.pins(TEXT, MUSL)) == {
        "one": "one==1.0 --hash=sha256:aa --hash=sha256:bb", "new": "new==2.0 --hash=sha256:dd",
    }  # fmt: skip
    arm = Target("3.11", "aarch64", "manylinux_2_36_aarch64")
    assert list(dict(foreign.pins(TEXT, arm))) == ["one", "old", "arm"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_pin_of_ours_is_one_for_pip(python: str) -> None:
    target = Target(python, "x86_64", MUSL.platform)
    text = (foreign.REQUIREMENTS / "runtime.txt").read_text()
    found = list(foreign.pins(text, target))
    names = [name for name, _ in found]
    assert len(names) == len(set(names)) > 60
    assert set(names) >= foreign.SOURCE_ONLY
    assert all("==" in line and " --hash=sha256:" in line for _, line in found)
    assert not any(";" in line for _, line in found)


def test_the_platforms_that_wheels_may_be_for() -> None:
    assert MUSL.platforms == [
        "musllinux_1_2_x86_64",
        "musllinux_1_1_x86_64",
        "musllinux_1_0_x86_64",
    ]
    found = Target("3.11", "aarch64", "manylinux_2_36_aarch64").platforms
    assert (found[0], found[-2:]) == (
        "manylinux_2_36_aarch64", ["manylinux_2_17_aarch64", "manylinux2014_aarch64"],
    )  # fmt: skip


def test_sources_are_those_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def kept(lines: list[str], *_: object) -> list[Path]:
        asked.append([line.partition("==")[0] for line in lines])
        return []

    monkeypatch.setattr(foreign, "kept", kept)
    foreign.sources(MUSL, tmp_path)
    foreign.sources(MUSL, tmp_path, foreign.SOURCE_ONLY)
    assert sorted(asked[1]) == sorted(foreign.SOURCE_ONLY)
    assert set(asked[0]) == {*asked[1], "llama-cpp-python"}


def test_what_was_fetched_is_kept_and_half_of_it_is_not(tmp_path: Path) -> None:
    asked = []

    def fetch(folder: Path, file: Path) -> None:
        asked.append(file.read_text())
        (folder / "a.whl").touch()
        if len(asked) == 1:
            raise OSError("the network broke off")

    with pytest.raises(OSError, match="broke off"):
        foreign.kept(["a==1"], tmp_path, "wheels", fetch)
    assert not list(tmp_path.iterdir())
    found = foreign.kept(["a==1"], tmp_path, "wheels", fetch)
    assert found == foreign.kept(["a==1"], tmp_path, "wheels", fetch)
    assert [path.name for path in found] == ["a.whl"]
    assert asked == ["a==1\n", "a==1\n"]
    assert foreign.kept(["a==2"], tmp_path, "wheels", fetch) != found
