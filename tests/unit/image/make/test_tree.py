"""The tree: what is in it does not depend on the machine that builds."""

from __future__ import annotations

from pathlib import Path

from image.make import tree
from image.make.source import Layout


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
    assert not (tmp_path / "image/make").exists()
    assert not list(tmp_path.rglob("*.pyc"))
    assert "Name: covey\n" in next(tmp_path.glob("covey-*.dist-info/METADATA")).read_text()


def test_the_serial_line_is_that_of_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_text("#!/bin/sh\n")
    (tmp_path / "bin/busybox").chmod(0o755)
    (tmp_path / "vmlinuz").touch()
    tree._lay(tmp_path, Layout("aarch64", "3.11", "", (), "dash", "bin/busybox"))
    inittab = (tmp_path / "etc/inittab").read_text()
    assert "\nttyAMA0::respawn:/usr/lib/covey/console\n" in inittab
    assert "ttyS0" not in inittab
