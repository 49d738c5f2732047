"""A mirror is trusted for nothing: what it sends is what was signed, or is refused."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.errors import CoveyError, EnvironmentFault, UsageError
from image.make.alpine import repository as alpine
from tests.unit.image.make.alpine.mirrors import KEY_NAME, KEYS, Repository, tar

PUBLISHED = {
    "6165ee59": "8b9c2208c904c9f34d9d01d3d68b224208530e684265df214deb8c9e6b4b1963"
    "3aa48a405e673249c9e93a8ee194a336e951cd82a4e27e5e66e85fdc5e0d495e",
    "616ae350": "51a5ec21283fe218809b2325202e1f8c9b2551705db48254b9d48a04f4ed0075"
    "de51e9886c4704647ffb309fd32d9850d14013848a53038039e85011251fe1cc",
}


def mirror(address: str, keys: Path, cache: Path, arch: str = "x86_64") -> alpine.Mirror:
    return alpine.Mirror(address, arch, cache, alpine.keys(keys))


@contextmanager
def served(handler: object) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Cutting(Quiet):
    """Breaks off in the middle of each package."""

    def copyfile(self, source: object, outputfile: object) -> None:
        raw = source.read()  # type: ignore[attr-defined]
        half = raw[: len(raw) // 2] if self.path.endswith(".apk") else raw
        outputfile.write(half)  # type: ignore[attr-defined]


def test_packages_are_verified_kept_and_unpacked(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a", files={"bin": None, "bin/tool": b"#!/bin/sh\n", "bin/link": "tool"})
    path = repository.add("b", files={"bin/tool": b"newer"})
    found = mirror(repository.write(), keys, tmp_path / "cache")
    entries = found.entries()
    files = found.fetch(entries)
    path.unlink()
    assert found.fetch(entries) == files
    root = tmp_path / "root"
    root.mkdir()
    found.unpack(entries, root)
    assert (root / "bin/tool").read_bytes() == b"newer"
    assert (root / "bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "bin/link").readlink() == Path("tool")
    # No script was run, and none is there.
    assert not list(root.rglob("*install*"))


def test_a_url_serves_as_well_as_a_folder(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a")
    folder = repository.write()
    with served(partial(Quiet, directory=folder)) as url:
        found = mirror(url, keys, tmp_path / "cache")
        assert [path.name[17:] for path in found.fetch(found.entries())] == ["a-1.0-r0.apk"]


def test_a_download_that_is_cut_leaves_nothing(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a", files={"a": b"x" * 5000})
    with served(partial(Cutting, directory=repository.write())) as url:
        found = mirror(url, keys, tmp_path / "cache")
        entries = found.entries()
        with pytest.raises(EnvironmentFault, match=r"a-1\.0-r0\.apk (broke off|cannot be read)"):
            found.fetch(entries)
    assert not list((tmp_path / "cache").iterdir())


def test_a_mirror_that_does_not_answer(keys: Path, tmp_path: Path) -> None:
    # Nobody listens on port 1.
    with pytest.raises(EnvironmentFault) as caught:
        mirror("http://127.0.0.1:1/alpine/", keys, tmp_path).entries()
    assert "http://127.0.0.1:1/alpine/main/x86_64/APKINDEX.tar.gz cannot be read" in str(
        caught.value
    )
    assert "Check the address" in caught.value.hint


def test_a_mirror_without_the_architecture(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a")
    with pytest.raises(EnvironmentFault, match="has no main for aarch64"):
        mirror(repository.write(), keys, tmp_path, "aarch64").entries()


def refused(repository: Repository, keys: Path, cache: Path) -> str:
    found = mirror(str(repository.folder), keys, cache)
    with pytest.raises(CoveyError) as caught:
        found.fetch(found.entries())
    assert not list(cache.glob("*"))
    return caught.value.line()


def test_an_index_that_another_key_signed(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a")
    repository.write(KEYS[1])
    assert f"by {KEY_NAME} is wrong" in refused(repository, keys, tmp_path / "cache")
    repository.write(KEYS[1], "mallory.rsa.pub")
    said = refused(repository, keys, tmp_path / "cache")
    assert "signed by mallory.rsa.pub, and that key is not known" in said
    assert "--keys" in said


def test_an_index_without_a_signature(repository: Repository, keys: Path, tmp_path: Path) -> None:
    repository.add("a")
    packed = gzip.compress(tar({"APKINDEX": b""}, whole=True))
    (repository.place / "APKINDEX.tar.gz").write_bytes(packed + packed)
    assert "is not signed" in refused(repository, keys, tmp_path / "cache")


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", gzip.compress(b"x" * 9000)[:-9]], ids=["nothing", "a page", "a part"]
)
def test_an_index_that_is_none(
    repository: Repository, keys: Path, tmp_path: Path, raw: bytes
) -> None:
    repository.add("a")
    (repository.place / "APKINDEX.tar.gz").write_bytes(raw)
    said = refused(repository, keys, tmp_path / "cache")
    assert "is no file of Alpine" in said or "ends too early" in said


def test_a_package_that_another_key_signed(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a", key=KEYS[1])
    repository.write()
    said = refused(repository, keys, tmp_path / "cache")
    assert said.startswith(f"the signature of a-1.0-r0.apk by {KEY_NAME} is wrong.")


def test_a_package_of_an_index_that_is_older(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a")
    repository.blocks[0] = "C:Q1" + "A" * 27 + "=\n" + repository.blocks[0].partition("\n")[2]
    repository.write()
    assert "is not the package that the index has" in refused(repository, keys, tmp_path / "cache")


@pytest.mark.parametrize("at", [10, -30])
def test_a_package_that_was_changed(
    repository: Repository, keys: Path, tmp_path: Path, at: int
) -> None:
    path = repository.add("a", files={"a": bytes(range(256)) * 9})
    repository.write()
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    said = refused(repository, keys, tmp_path / "cache")
    assert "a-1.0-r0.apk" in said


def test_data_that_was_exchanged(repository: Repository, keys: Path, tmp_path: Path) -> None:
    path = repository.add("a", files={"a": b"one"})
    other = repository.add("b", files={"a": b"two"})
    repository.blocks.pop()
    repository.write()
    data = gzip.compress(tar({"a": b"one"}, whole=True), mtime=0)
    assert path.read_bytes().endswith(data)
    raw = path.read_bytes()[: -len(data)] + other.read_bytes()[-len(data) :]
    path.write_bytes(raw)
    assert "the files in a-1.0-r0.apk are not those that were signed" in refused(
        repository, keys, tmp_path / "cache"
    )


def test_a_package_that_is_another(repository: Repository, keys: Path, tmp_path: Path) -> None:
    repository.add("a", says="evil")
    repository.write()
    said = refused(repository, keys, tmp_path / "cache")
    assert "says that it is evil 1.0-r0 x86_64, and the index a 1.0-r0 x86_64" in said


def test_a_package_that_is_too_short_or_gone(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    path = repository.add("a")
    repository.write()
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    said = refused(repository, keys, tmp_path / "cache")
    assert f"has {len(raw) - 1} bytes, and the index says {len(raw)}" in said
    path.unlink()
    assert "in its index, and no such file" in refused(repository, keys, tmp_path / "cache")


def test_what_came_into_the_cache_is_verified_again(
    repository: Repository, keys: Path, tmp_path: Path
) -> None:
    repository.add("a", files={"a": b"one"})
    found = mirror(repository.write(), keys, tmp_path / "cache")
    entries = found.entries()
    path = found.fetch(entries)[0]
    raw = bytearray(path.read_bytes())
    raw[-12] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EnvironmentFault, match="not those that were signed"):
        found.unpack(entries, tmp_path)


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../outside": b"x"}, "a file outside the root: '../outside'"),
        ({"/outside": b"x"}, "a file outside the root"),
        ({"a/../../outside": b"x"}, "a file outside the root"),
        ({"dev": member("dev/null", tarfile.CHRTYPE)}, "is no file, folder or link"),
        ({"h": member("h", tarfile.LNKTYPE, "../outside")}, "a file outside the root"),
        ({"h": member("h", tarfile.LNKTYPE, "nothing")}, "links 'h' to what it does not have"),
        ({"x": "y", "y": "x", "x/a": b""}, "links that lead in a circle"),
        ({"f": b"x", "f/a": b"x"}, "which is no folder"),
        ({"d": None, "d ": b"", "e": member("d", tarfile.REGTYPE)}, "another has the folder 'd'"),
    ],
)  # fmt: skip
def test_paths_that_lead_outside(
    repository: Repository, keys: Path, tmp_path: Path, files: dict[str, object], words: str
) -> None:
    repository.add("a", files=files)
    found = mirror(repository.write(), keys, tmp_path / "cache")
    entries = found.entries()
    found.fetch(entries)
    root = tmp_path / "in" / "root"
    root.mkdir(parents=True)
    (tmp_path / "in" / "outside").write_text("kept")
    with pytest.raises(EnvironmentFault, match=words):
        found.unpack(entries, root)
    assert (tmp_path / "in" / "outside").read_text() == "kept"
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/../../etc"])
def test_links_on_the_way_stay_inside(
    repository: Repository, keys: Path, tmp_path: Path, target: str
) -> None:
    repository.add("a", files={"etc": None, "way": target})
    repository.add("b", files={"way/covey-test": b"x"})
    found = mirror(repository.write(), keys, tmp_path / "cache")
    entries = found.entries()
    found.fetch(entries)
    root = tmp_path / "root"
    root.mkdir()
    found.unpack(entries, root)
    assert (root / "etc/covey-test").read_bytes() == b"x"
    assert not Path("/etc/covey-test").exists()


def test_a_folder_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no public key is in"):
        alpine.keys(tmp_path)
    (tmp_path / "a.pub").write_text("ssh-ed25519 AAAA")
    with pytest.raises(UsageError, match=r"a\.pub is no RSA public key"):
        alpine.keys(tmp_path)


def test_alpines_own_keys_are_those_that_alpine_publishes() -> None:
    """By the SHA-512 of each, as aports' main/alpine-keys/APKBUILD has it."""
    assert len(alpine.keys(alpine.PINNED)) == len(PUBLISHED)
    for number, digest in PUBLISHED.items():
        file = alpine.PINNED / f"alpine-devel@lists.alpinelinux.org-{number}.rsa.pub"
        assert hashlib.sha512(file.read_bytes()).hexdigest() == digest
