"""A wheel is built in a root of its own, which it cannot change, without a network."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from agent.engine.llama_build import ANY_CPU_OPTIONS
from agent.errors import EnvironmentFault
from image.make import programs
from image.make.alpine import building, repository
from image.make.alpine.index import Entry
from image.make.source import Layout
from tests.unit.image.make.alpine.mirrors import Repository

# A build backend as PEP 517 has them; it says what it sees of the machine.
BACKEND = """
import os, pathlib, socket, zipfile
import tool
def build_wheel(folder, config_settings=None, metadata_directory=None):
    if os.path.exists("broken"):
        raise SystemExit("no such header: gmp.h")
    try:
        pathlib.Path("/usr/covey-test").touch()
        changed = "changed"
    except OSError:
        changed = "kept"
    name = "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        archive.writestr("root", changed)
        archive.writestr("network", " ".join(name for _, name in socket.if_nameindex()))
        archive.writestr("options", os.environ["CMAKE_ARGS"])
        archive.writestr("tool", tool.SAYS)
    return name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def can_enter() -> bool:
    if shutil.which("bwrap") is None or not Path("/usr/bin/python3").exists():
        return False
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "/usr/bin/python3", "-c",
               "import tomllib"]  # fmt: skip
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


NEEDS_BWRAP = pytest.mark.skipif(not can_enter(), reason="bubblewrap or its namespaces are missing")


def archive(folder: Path, **more: str) -> Path:
    path = folder / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        for name, text in {"backend.py": BACKEND, "pyproject.toml": PROJECT, **more}.items():
            member = tarfile.TarInfo(f"thing-1.0/{name}")
            member.size = len(text)
            made.addfile(member, io.BytesIO(text.encode()))
    return path


def tool(folder: Path) -> Path:
    path = folder / "tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("tool.py", "SAYS = 'hammer'\n")
    return path


@NEEDS_BWRAP
def test_a_wheel_out_of_its_sources(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    built = building.wheel(Path("/"), archive(tmp_path), [tool(tmp_path)], out)
    assert list(out.iterdir()) == [built]
    with zipfile.ZipFile(built) as found:
        said = {name: found.read(name).decode() for name in found.namelist()}
    # What is built for many machines does not use what only this one has.
    assert said == {
        "root": "kept", "network": "lo", "options": " ".join(ANY_CPU_OPTIONS),
        "tool": "hammer",
    }  # fmt: skip


@NEEDS_BWRAP
def test_a_build_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EnvironmentFault) as caught:
        building.wheel(Path("/"), archive(tmp_path, broken=""), [tool(tmp_path)], out)
    assert "no such header: gmp.h" in caught.value.message
    assert "thing-1.0.tar.gz" in caught.value.hint
    assert not list(out.iterdir())


def stage(mirror: Repository, keys: Path, tmp_path: Path) -> tuple[building.Stage, list[Entry]]:
    busybox = b"#!/bin/sh\nprintf 'bin/sed\\n'\n"
    mirror.add("busybox-static", files={"bin/busybox.static": busybox})
    mirror.add("build-base", files={"usr/bin/make": b"x"})
    mirror.write()
    found = repository.Mirror(str(mirror.folder), mirror.arch, tmp_path / "apks",
                              repository.keys(keys))  # fmt: skip
    entries = found.entries()
    layout = Layout("x86_64", "3.12", "", (), "/bin/busybox", "bin/busybox.static")
    return building.Stage(found, entries, tmp_path, layout), entries


def test_the_root_that_it_is_built_in_is_made_of_packages_once(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    made, entries = stage(repository, keys, tmp_path)
    root = made._root()
    assert (root / "bin/sed").readlink() == Path("/bin/busybox")
    assert (root / "usr/bin/make").exists()
    shutil.rmtree(repository.folder)
    assert made._root() == root
    assert len(entries) == 2


def test_without_bubblewrap_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "PATH", "/nowhere")
    with pytest.raises(EnvironmentFault, match="bwrap is not installed") as caught:
        building.wheel(Path("/"), archive(tmp_path), [], tmp_path)
    assert "bubblewrap" in caught.value.hint
