"""The tree: what is in it does not depend on the machine that builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.make import tree
from image.make.source import Layout, Runnable

ARM = Layout("aarch64", "3.11", "", (), "dash", "bin/busybox")
# A program that does not run here.
FOREIGN = b"\x7fELF for another CPU"


def laid(folder: Path) -> Path:
    """Return a root for aarch64 as `_lay` makes it, out of hardly anything."""
    root, here = folder / "root", folder / "here"
    for path in (root / "bin", root / "usr/bin", here / "bin"):
        path.mkdir(parents=True)
    (root / "usr/bin/ip").write_text("a package's")
    (root / "bin/busybox").write_bytes(FOREIGN)
    (here / "bin/busybox").write_text("#!/bin/sh\nprintf 'bin/sed\\nsbin/ip\\n'\n")
    (here / "bin/busybox").chmod(0o755)
    (root / "vmlinuz").touch()
    tree._lay(root, ARM, Runnable(here, ARM))
    return root


def test_modes_are_even_and_no_program_is_setuid(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o700)
    for name, mode in (("su", 0o4711), ("text", 0o640), ("tool", 0o700)):
        (tmp_path / "bin" / name).touch()
        (tmp_path / "bin" / name).chmod(mode)
    (tmp_path / "bin" / "sh").symlink_to("/nowhere")
    tree._even_modes(tmp_path)
    found = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "bin").glob("*u*")}
    assert found == {"su": 0o755}
    assert (tmp_path / "bin").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "bin" / "text").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "bin" / "tool").stat().st_mode & 0o7777 == 0o755


def test_only_what_runs_on_it_is_copied_of_covey(tmp_path: Path) -> None:
    tree._covey(tmp_path)
    assert (tmp_path / "agent/models/bundled/covey-mini.gguf").exists()
    assert (tmp_path / "image/node/watching.py").exists()
    assert (tmp_path / "image/containers/alive.py").exists()
    assert not (tmp_path / "image/make").exists()
    assert not list((tmp_path / "image/containers").rglob("*.yaml"))
    assert not list(tmp_path.rglob("*.pyc"))
    assert "Name: covey\n" in next(tmp_path.glob("covey-*.dist-info/METADATA")).read_text()


def test_the_serial_line_is_that_of_the_architecture(tmp_path: Path) -> None:
    root = laid(tmp_path)
    inittab = (root / "etc/inittab").read_text()
    assert "\nttyAMA0::respawn:/usr/lib/covey/console\n" in inittab
    assert "ttyS0" not in inittab


def test_busyboxs_commands_are_what_that_of_this_machine_says(tmp_path: Path) -> None:
    root = laid(tmp_path)
    assert (root / "bin/sed").readlink() == Path("/bin/busybox")
    assert (root / "bin/busybox").read_bytes() == FOREIGN
    # What a package brought is better.
    assert (root / "usr/bin/ip").read_text() == "a package's"
    assert not (root / "sbin/ip").exists()


def test_python_is_compiled_by_that_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[object]] = []
    environments: list[dict[str, str]] = []

    def run(command: list[object], *, env: dict[str, str]) -> str:
        asked.append(command)
        environments.append(env)
        return ""

    monkeypatch.setattr(tree, "run", run)
    here = Layout("x86_64", "3.11", "lib/ld.so", ("lib",), "dash", "bin/busybox")
    tree._compile(tmp_path / "root", ARM, Runnable(tmp_path / "here", here))
    assert asked[0][:4] == [
        tmp_path / "here/lib/ld.so", "--library-path", str(tmp_path / "here/lib"),
        tmp_path / "here/usr/bin/python3.11",
    ]  # fmt: skip
    assert environments[0]["PYTHONHOME"] == str(tmp_path / "here/usr")
    # What is compiled is the image's.
    assert asked[0][-2:] == [
        tmp_path / "root/usr/lib/python3.11", tmp_path / "root/usr/lib/python3/dist-packages",
    ]  # fmt: skip
