"""Sealed backups: who can open them, what is in them, and what is laid on a host."""

import io
import json
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tests.unit.ansible.load import load

pytestmark = pytest.mark.slow

sealed = load("module_utils/covey_sealed.py")
archive = load("module_utils/covey_archive.py")

PASSPHRASE = "correct horse battery"
SALT = bytes(range(16))


@pytest.fixture(scope="module")
def public() -> bytes:
    key: bytes = sealed.public_key(PASSPHRASE, SALT)
    return key


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 200_000])
def test_the_passphrase_alone_opens_a_backup(public: bytes, size: int) -> None:
    data = os.urandom(size)
    raw = sealed.seal(data, "box", 1.5, SALT, public)
    assert sealed.open_sealed(raw, sealed.file_key(raw, PASSPHRASE)) == data
    assert data[:64] not in raw or size < 8
    assert sealed.header(raw)["host"] == "box"


def test_a_wrong_passphrase_is_said_and_a_short_one_refused(public: bytes) -> None:
    raw = sealed.seal(b"x", "box", 1, SALT, public)
    with pytest.raises(sealed.SealError, match="is not the one"):
        sealed.file_key(raw, "another passphrase")
    with pytest.raises(sealed.SealError, match="fewer than 12"):
        sealed.public_key("short", SALT)


def test_a_host_s_key_opens_no_other_backup(public: bytes) -> None:
    one, other = (sealed.seal(b"x" * 99, name, 1, SALT, public) for name in ("box", "den"))
    with pytest.raises(sealed.SealError, match="damaged"):
        sealed.open_sealed(other, sealed.file_key(one, PASSPHRASE))


def test_damage_anywhere_is_found(public: bytes) -> None:
    raw = sealed.seal(os.urandom(150_000), "box", 1, SALT, public)
    key, end = sealed.file_key(raw, PASSPHRASE), raw.index(b"\n") + 1
    chunk = 64 * 1024 + 16
    chunks = [raw[at : at + chunk] for at in range(end, len(raw), chunk)]
    flipped = bytearray(raw)
    flipped[-20] ^= 1
    for bad in (
        bytes(flipped),
        raw[:-1],
        raw[: end + chunk],
        raw + b"x",
        raw[:end],
        raw[:end] + chunks[1] + chunks[0] + chunks[2],
        raw.replace(b'"box"', b'"den"', 1),
    ):  # fmt: skip
        with pytest.raises(sealed.SealError):
            sealed.open_sealed(bad, key)
    for none in (b"", b"\n", b"{}\n", b'{"format": "x"}\n', b"[]\n", b"x" * 9000):
        with pytest.raises(sealed.SealError, match="no backup"):
            sealed.header(none)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's folders: state, etc, gateway."""
    files = {
        "state/node.key": b"seed", "state/mesh.json": b"{}", "state/root.key": b"root",
        "state/invites.json": b"{}", "state/epochs.json": b'{"version":1,"reserved":7000}',
        "state/models/big.gguf": b"weights", "state/lock": b"1\n", "state/agent.log": b"log",
        "state/discovery": b"who", "etc/agent.toml": b"[node]\n", "etc/tls/key.pem": b"pem",
    }  # fmt: skip
    for name, data in files.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
    (tmp_path / "host" / "etc" / "agent.toml").chmod(0o644)
    return tmp_path / "host"


def places(root: Path) -> tuple[Path, Path, Path]:
    return root / "state", root / "etc", root / "gateway" / "gateway.db"


def test_a_restored_host_has_the_same_keys_and_settings(host: Path, tmp_path: Path) -> None:
    data, count = archive.pack(*places(host))
    assert count == 8
    new = tmp_path / "new"
    archive.lay(archive.unpack(data), *places(new))
    found = {str(p.relative_to(new)) for p in new.rglob("*") if p.is_file()}
    assert found == {
        "state/node.key", "state/mesh.json", "state/root.key", "state/epochs.json",
        "state/discovery", "etc/agent.toml", "etc/tls/key.pem",
    }  # fmt: skip
    assert (new / "state/node.key").read_bytes() == b"seed"
    assert (new / "state/node.key").stat().st_mode & 0o777 == 0o600
    assert (new / "etc/agent.toml").stat().st_mode & 0o777 == 0o644
    assert (new / "state").stat().st_mode & 0o777 == 0o700


def test_tickets_are_void_and_epochs_are_beyond_those_that_may_have_been_used(
    host: Path, tmp_path: Path
) -> None:
    archive.lay(archive.unpack(archive.pack(*places(host))[0]), *places(tmp_path / "new"))
    epochs = json.loads((tmp_path / "new/state/epochs.json").read_bytes())
    assert epochs == {"version": 1, "reserved": 7000 + 10**9}
    assert not (tmp_path / "new/state/invites.json").exists()


def test_the_gateway_s_store_is_whole_while_it_is_written(host: Path, tmp_path: Path) -> None:
    store = places(host)[2]
    store.parent.mkdir()
    live = sqlite3.connect(store)
    live.execute("PRAGMA journal_mode=WAL")
    live.execute("CREATE TABLE keys (name TEXT)")
    live.execute("INSERT INTO keys VALUES ('ci')")
    live.commit()
    live.execute("INSERT INTO keys VALUES ('half done')")  # not committed
    data, _ = archive.pack(*places(host))
    live.close()
    archive.lay(archive.unpack(data), *places(tmp_path / "new"))
    copy = sqlite3.connect(places(tmp_path / "new")[2])
    assert copy.execute("SELECT name FROM keys").fetchall() == [("ci",)]
    copy.close()


def test_settings_that_are_there_stay_and_a_node_that_is_there_is_not_touched(
    host: Path, tmp_path: Path
) -> None:
    found = archive.unpack(archive.pack(*places(host))[0])
    new = tmp_path / "new"
    (new / "etc").mkdir(parents=True)
    (new / "etc/agent.toml").write_text("newer")
    archive.lay(found, *places(new))
    assert (new / "etc/agent.toml").read_text() == "newer"
    (new / "state/mesh.json").write_text("other")
    with pytest.raises(archive.ArchiveError, match="holds a node's key already"):
        archive.lay(found, *places(new))
    assert (new / "state/mesh.json").read_text() == "other"


def test_a_host_without_a_mesh_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(archive.ArchiveError, match="in no mesh"):
        archive.pack(*places(tmp_path))


def test_only_archives_of_ours_are_laid() -> None:
    def tar(*entries: tuple[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name, kind in entries:
                entry = tarfile.TarInfo(name)
                entry.type = kind
                entry.linkname = "/etc/passwd"
                file.addfile(entry, io.BytesIO())
        return buffer.getvalue()

    whole = [("state/mesh.json", tarfile.REGTYPE), ("state/node.key", tarfile.REGTYPE)]
    assert set(archive.unpack(tar(*whole))) == {"state/mesh.json", "state/node.key"}
    for bad in (
        ("../x", tarfile.REGTYPE),
        ("/etc/x", tarfile.REGTYPE),
        ("state/x", tarfile.SYMTYPE),
    ):
        with pytest.raises(archive.ArchiveError, match="would not write"):
            archive.unpack(tar(*whole, bad))
    with pytest.raises(archive.ArchiveError, match="no node's key"):
        archive.unpack(tar(whole[0]))
    with pytest.raises(archive.ArchiveError, match="cannot be read"):
        archive.unpack(b"no archive")
