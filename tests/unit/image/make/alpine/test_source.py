"""The appliance's root out of a mirror of Alpine's: packages of the test's, all else ours."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import initramfs, programs, tree
from image.make.alpine.source import BUILD, KERNELS, WANTED, Alpine
from tests.unit.image.make.alpine.mirrors import Repository

RELEASE = "6.12.9-0-virt"
MODULES = f"lib/modules/{RELEASE}"
# They say what their namesakes would, and are run by this machine's shell.
BUSYBOX = b"#!/bin/sh\nprintf 'bin/ls\\nbin/tool\\nsbin/reboot\\n'\n"
CONTENTS: dict[str, dict[str, object]] = {
    "busybox": {
        "bin": None, "bin/busybox": b"dynamic", "bin/sh": "/bin/busybox", "etc": None,
        "etc/passwd": b"x",
    },
    "busybox-static": {"bin/busybox.static": BUSYBOX},
    "openrc": {"sbin": None, "sbin/openrc": b"x", "etc/init.d": None, "etc/init.d/sshd": b"x"},
    "python3": {
        "usr/bin/python3.12": b"x", "usr/bin/python3": "python3.12", "usr/lib/python3.12/os.py":
        b"x", "usr/lib/python3.12/ensurepip/a.py": b"x", "usr/bin/tool": b"x",
    },
    "musl": {"lib/ld-musl-x86_64.so.1": b"#!/bin/sh\nexit 0\n"},
    "linux-virt": {
        "boot/vmlinuz-virt": b"kernel", "boot/config-virt": b"x", f"{MODULES}/modules.order": b"",
        f"{MODULES}/modules.builtin": b"", f"{MODULES}/kernel/squashfs.ko.gz":
        gzip.compress(b"module", mtime=0),
    },
}  # fmt: skip


@pytest.fixture
def release(repository: Repository) -> Repository:
    """A mirror with all that the image wants."""
    needs = {"openrc": "/bin/sh", "linux-virt": "initramfs-generator", "python3": "so:libc.so"}
    provides = {"busybox": "/bin/sh", "musl": "so:libc.so=1"}
    for name in {*WANTED, *CONTENTS}:
        lines = {"D": needs.get(name, ""), "p": provides.get(name, "")}
        version = "3.12.4-r0" if name == "python3" else "1.0-r0"
        repository.add(name, version, CONTENTS.get(name), **lines)
    repository.write()
    return repository


def source(release: Repository, keys: Path, tmp_path: Path) -> Alpine:
    return Alpine(str(release.folder), "x86_64", tmp_path / "cache", keys)


@pytest.mark.skipif(shutil.which("depmod", path=programs.PATH) is None, reason="no depmod")
def test_the_root_out_of_alpines_packages(release: Repository, keys: Path, tmp_path: Path) -> None:
    packages = source(release, keys, tmp_path).fetch("virt")
    assert packages.layout.python == "3.12"
    assert packages.count == len({*WANTED, *CONTENTS})
    root = tmp_path / "root"
    root.mkdir()
    tree.make(root, packages, [], tmp_path / "board")
    assert not (tmp_path / "board").exists()
    # One busybox, the static one, is all commands that no package has.
    assert (root / "bin/busybox").read_bytes() == BUSYBOX
    assert not (root / "bin/busybox.static").exists()
    for name, target in {
        "bin/sh": "/bin/busybox", "bin/ls": "/bin/busybox", "sbin/init": "/bin/busybox",
        "usr/bin/python3": "python3.12",
    }.items():  # fmt: skip
        assert (root / name).readlink() == Path(target)
    assert not (root / "bin/tool").exists()
    assert (root / "boot/vmlinuz").read_bytes() == b"kernel"
    assert not (root / "boot/config-virt").exists()
    # The services are ours, and Python finds Covey where it is for every source.
    assert sorted(path.name for path in (root / "etc/init.d").iterdir())[0] == "covey-agent"
    assert not (root / "etc/init.d/sshd").exists()
    assert (root / "etc/passwd").read_text().startswith("root:")
    assert "\nttyS0::respawn:" in (root / "etc/inittab").read_text()
    site = (root / "usr/lib/python3.12/site-packages/covey.pth").read_text()
    assert (root / site.strip().lstrip("/") / "agent/cli").is_dir()
    assert not (root / "usr/lib/python3.12/ensurepip").exists()


def test_modules_are_loaded_as_they_were_before_they_were_compressed(tmp_path: Path) -> None:
    folder = tmp_path / MODULES
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("squashfs.ko.gz:\noverlay.ko:\n")
    (folder / "squashfs.ko.gz").write_bytes(gzip.compress(b"compressed module"))
    (folder / "overlay.ko").write_bytes(b"plain module")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"busybox")
    archive = gzip.decompress(initramfs.make(tmp_path, RELEASE))
    assert b"compressed module" in archive
    assert b"plain module" in archive
    assert b"squashfs.ko\0" in archive
    assert b".gz" not in archive


def test_a_kernel_for_each_flavour_and_no_compiler_in_the_image() -> None:
    assert KERNELS["metal"][0] == "linux-lts"
    assert "linux-firmware-rtl_nic" in KERNELS["metal"]
    assert KERNELS["virt"] == ("linux-virt",)
    assert not set(BUILD) & set(WANTED)


def test_what_is_missing_for_a_flavour_is_told(
    release: Repository, keys: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        source(release, keys, tmp_path).fetch("metal")
    assert "no package provides linux-lts, which the image needs" in caught.value.line()


def test_another_python_than_three(repository: Repository, keys: Path, tmp_path: Path) -> None:
    for name in WANTED:
        repository.add(name, "4.0-r0")
    repository.add("linux-virt")
    repository.write()
    with pytest.raises(EnvironmentFault, match=r"Python's version '4\.0-r0'"):
        _ = source(repository, keys, tmp_path).fetch("virt").layout
