"""Wheels are taken apart: packages stay, programs and headers do not, nothing gets outside."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import wheels


def wheel(folder: Path, *names: str) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_what_is_unpacked(tmp_path: Path) -> None:
    names = (
        "thing/__init__.py", "thing-1.0.dist-info/METADATA", "thing-1.0.data/purelib/more.py",
        "thing-1.0.data/platlib/fast.so", "thing-1.0.data/scripts/thing",
        "thing-1.0.data/headers/thing.h",
    )  # fmt: skip
    into = tmp_path / "packages"
    wheels.unpack(wheel(tmp_path, *names), into)
    found = {str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()}
    assert found == {"thing/__init__.py", "thing-1.0.dist-info/METADATA", "more.py", "fast.so"}
    assert (into / "more.py").read_text() == "thing-1.0.data/purelib/more.py"


def test_llama_cpps_part_for_cpus_with_amx_is_left_out(tmp_path: Path) -> None:
    lib = "llama_cpp/lib/libggml-cpu-"
    names = (f"{lib}zen4.so", f"{lib}sapphirerapids.so", f"{lib}sapphirerapids.so.0")
    wheels.unpack(wheel(tmp_path, *names), tmp_path / "packages")
    assert [path.name for path in tmp_path.rglob("libggml*")] == ["libggml-cpu-zen4.so"]


@pytest.mark.parametrize(("plain", "word"), [(False, "--any-cpu"), (True, "--plain")])
def test_llama_cpp_is_for_all_cpus_or_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool, word: str
) -> None:
    asked: list[object] = []

    def run(command: list[object], **_: object) -> str:
        asked.extend(command)
        return "It takes a while.\n/cache/llama.whl\n"

    monkeypatch.setattr(wheels, "run", run)
    assert wheels.llama(tmp_path, tmp_path, "aarch64", plain=plain) == Path("/cache/llama.whl")
    assert asked[asked.index("--arch") + 1] == "aarch64"
    assert word in asked and asked.count("--plain") + asked.count("--any-cpu") == 1


@pytest.mark.parametrize("name", ["../outside.py", "/etc/passwd", "thing/../../outside.py"])
def test_a_file_outside_the_wheel_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EnvironmentFault, match="outside itself"):
        wheels.unpack(wheel(tmp_path, name), tmp_path / "packages")
    assert not (tmp_path / "outside.py").exists()


def test_another_python_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "PYTHON", (3, 1))
    with pytest.raises(EnvironmentFault, match=r"the image has Python 3\.1,"):
        wheels.fetch(tmp_path / "requirements.txt", tmp_path)
