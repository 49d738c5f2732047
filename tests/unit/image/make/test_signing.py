"""Keys and signed updates: made out of an image, the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import CoveyError, EnvironmentFault, UsageError
from image.disk import bootfiles
from image.disk.layout import MIB, Sizes
from image.disk.write import write
from image.make import signing
from image.node.install import read_head
from image.node.manifest import Flavour, verify
from image.node.release import Release

ROOT = Path(__file__).parents[4]
squashfs = pytest.mark.skipif(
    not (shutil.which("mksquashfs") and shutil.which("unsquashfs") and bootfiles.available()),
    reason="squashfs-tools, dosfstools or mtools are not installed",
)
BOOT_BYTES = 33 * MIB
# Where the boot partition begins: behind the table and GRUB's core image for BIOS.
BOOT_AT = 2 * MIB


def key(folder: Path, name: str = "ours") -> tuple[bytes, bytes]:
    """Make a key; return its seed and its public part."""
    public = signing.new_key(folder / name)
    return signing.read_key(folder / name), signing.read_public(public)


def image(
    folder: Path, keys: tuple[bytes, ...], version: str = "0.3.0", flavour: Flavour = "virt"
) -> Path:
    root = folder / "root"
    (root / "usr/lib/covey").mkdir(parents=True)
    (root / "usr/bin").mkdir()
    (root / "usr/bin/tool").write_bytes(os.urandom(9999))
    signing.lay(root, Release(version, "x86_64", keys, flavour))
    subprocess.run(["mksquashfs", root, folder / "slot", "-quiet", "-no-progress"], check=True)
    out = folder / "covey.img"
    (folder / "note").write_text("# note\n")
    bootfiles.make(folder / "boot", BOOT_BYTES, {"covey/note": folder / "note"}, signing.EPOCH_S)
    parts = {"boot": folder / "boot", "slot-a": folder / "slot"}
    write(out, "x86_64", Sizes(BOOT_BYTES, MIB, MIB), parts)
    return out


def test_a_key_is_this_users_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    seed, public = key(tmp_path)
    assert len(seed) == len(public) == 32
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "ours").read_text()
    with pytest.raises(UsageError, match="is there already"):
        signing.new_key(tmp_path / "ours")
    assert (tmp_path / "ours").read_text() == before
    with pytest.raises(EnvironmentFault, match="No such file"):
        signing.new_key(tmp_path / "none/key")


def test_keys_that_are_none_are_told(tmp_path: Path) -> None:
    key(tmp_path)
    with pytest.raises(UsageError, match="holds no key"):
        signing.read_key(tmp_path / "ours.pub")
    with pytest.raises(UsageError, match="no public key"):
        signing.read_public(tmp_path / "ours")
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(UsageError):
        signing.read_key(tmp_path / "odd")
    with pytest.raises(EnvironmentFault):
        signing.read_public(tmp_path / "none")


@squashfs
def test_an_update_is_what_is_in_the_images_slot_and_signed(tmp_path: Path) -> None:
    seed, public = key(tmp_path)
    made = image(tmp_path, (public,))
    out, manifest = signing.make_update(made, seed, tmp_path / "one.update", "0.2.0")
    with out.open("rb") as file:
        assert verify(read_head(file.read), (public,)) == manifest
        content = file.read()
    assert content == (tmp_path / "slot").read_bytes()
    assert manifest.part("root").sha256 == hashlib.sha256(content).hexdigest()
    assert (manifest.version, manifest.arch, manifest.floor) == ("0.3.0", "x86_64", "0.2.0")
    again, _ = signing.make_update(made, seed, tmp_path / "two.update", "0.2.0")
    assert again.read_bytes() == out.read_bytes()


@squashfs
def test_an_update_is_for_its_images_flavour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, public = key(tmp_path)
    monkeypatch.chdir(tmp_path)
    out, manifest = signing.make_update(image(tmp_path, (public,), flavour="metal"), seed)
    assert manifest.flavour == "metal"
    assert out == Path("covey-0.3.0-x86_64-metal.update")


@squashfs
def test_its_signature_is_left_on_the_images_boot_partition(tmp_path: Path) -> None:
    seed, public = key(tmp_path)
    made = image(tmp_path, (public,))
    out, manifest = signing.make_update(made, seed, tmp_path / "one.update")
    copy = shutil.copyfile(made, tmp_path / "copy.img")
    signing.leave(made, out)
    left = made.read_bytes()
    assert (tmp_path / "covey.img.sha256").read_text() == (
        f"{hashlib.sha256(left).hexdigest()}  covey.img\n"
    )

    def kept(name: str) -> bytes:
        command = ["mtype", "-i", f"{made}@@{BOOT_AT}", f"::covey/{name}"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    assert verify(kept("update-a"), (public,)) == manifest
    assert kept("note") == b"# note\n"
    # The same image gives the same bytes; where a signature is there already, it is replaced.
    signing.leave(copy, out)
    assert copy.read_bytes() == left
    signing.leave(made, out)
    assert verify(kept("update-a"), (public,)) == manifest
    again, _ = signing.make_update(made, seed, tmp_path / "two.update")
    assert again.read_bytes() == out.read_bytes()


@squashfs
def test_what_no_update_can_be_made_of_leaves_nothing(tmp_path: Path) -> None:
    seed, public = key(tmp_path)
    made = image(tmp_path, ())
    out = tmp_path / "one.update"
    with pytest.raises(UsageError, match="trusts no key"):
        signing.make_update(made, seed, out)
    (tmp_path / "short").write_bytes(b"no image")
    with pytest.raises(UsageError, match="is no image of an appliance"):
        signing.make_update(tmp_path / "short", seed, out)
    write(tmp_path / "empty", "x86_64", Sizes(slot=MIB, data=MIB), {})
    with pytest.raises(UsageError, match="no squashfs in slot a"):
        signing.make_update(tmp_path / "empty", seed, out)
    with pytest.raises(CoveyError):
        signing.make_update(tmp_path / "none", seed, out)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="a floor above its own version"):
        signing.make_update(image(tmp_path / "other", (public,)), seed, out, "0.4.0")
    assert not list(tmp_path.glob("*update*"))


@squashfs
def test_the_command_line(tmp_path: Path) -> None:
    def sign(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "image.make.sign", *words], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
        )  # fmt: skip

    done = sign("--new-key", "ours")
    assert done.returncode == 0 and "--update-key ours.pub" in done.stdout
    image(tmp_path, (signing.read_public(tmp_path / "ours.pub"),))
    done = sign("--key", "ours")
    assert done.stdout.startswith("covey-0.3.0-x86_64.update updates x86_64 to 0.3.0"), done.stderr
    assert "covey.img has the signature too" in done.stdout
    assert (tmp_path / "covey.img.sha256").exists()
    done = sign("--key", "ours.pub")
    assert done.returncode == 2 and done.stderr.startswith("ours.pub holds no key")
