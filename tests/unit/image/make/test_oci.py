"""The root as OCI images: what the image-spec demands of each field, each time the same."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent import __version__
from image.make import oci

EPOCH_S = 1_767_225_600
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def tree(folder: Path) -> Path:
    for name in ("usr/bin", "boot", "lib/modules/6.1", "tmp", "etc/init.d", "root"):
        (folder / name).mkdir(parents=True)
    for name in ("usr/bin/agent", "boot/vmlinuz", "lib/modules/6.1/a.ko", "etc/shadow"):
        (folder / name).write_text(name)
    (folder / "usr/bin/agent").chmod(0o755)
    (folder / "usr/bin/sh").symlink_to("/bin/busybox")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The layout's files, as they are in the tar."""
    oci.write(tree(tmp_path / "root"), "x86_64", EPOCH_S, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        found = {}
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
        return found


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """Return what a descriptor describes: a digest, a size and a media type, all of them right."""
    assert DIGEST.fullmatch(descriptor["digest"])
    content = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    assert hashlib.sha256(content).hexdigest() == descriptor["digest"][7:]
    assert len(content) == descriptor["size"]
    return content


def images(files: dict[str, bytes]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return manifest and config of each image by its name."""
    index = json.loads(files["index.json"])
    found = {}
    for descriptor in index["manifests"]:
        manifest = json.loads(blob(files, descriptor))
        name = descriptor["annotations"]["org.opencontainers.image.ref.name"]
        found[name] = (manifest, json.loads(blob(files, manifest["config"])))
    return found


def test_the_layout_and_its_index(files: dict[str, bytes]) -> None:
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    for descriptor in index["manifests"]:
        assert descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert descriptor["platform"] == {"architecture": "amd64", "os": "linux"}
    assert set(images(files)) == {"agent", "gateway"}
    # Layout, index, Docker's list, two manifests, two configs, and one layer for both.
    assert len(files) == 8


def test_engines_that_do_not_read_the_layout_are_told_the_same(files: dict[str, bytes]) -> None:
    listed = json.loads(files["manifest.json"])
    assert [one["RepoTags"] for one in listed] == [
        ["localhost/covey/agent:latest"], ["localhost/covey/gateway:latest"],
    ]  # fmt: skip
    for one, descriptor in zip(listed, json.loads(files["index.json"])["manifests"], strict=True):
        assert descriptor["annotations"]["io.containerd.image.name"] == one["RepoTags"][0]
        manifest = json.loads(blob(files, descriptor))
        assert files[one["Config"]] == blob(files, manifest["config"])
        assert [files[layer] for layer in one["Layers"]] == [
            blob(files, layer) for layer in manifest["layers"]
        ]


@pytest.mark.parametrize("name", ["agent", "gateway"])
def test_manifest_and_config(files: dict[str, bytes], name: str) -> None:
    manifest, config = images(files)[name]
    assert (manifest["schemaVersion"], manifest["mediaType"]) == (
        2, "application/vnd.oci.image.manifest.v1+json",
    )  # fmt: skip
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    (stored,) = manifest["layers"]
    assert stored["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    plain = gzip.decompress(blob(files, stored))
    assert config["rootfs"] == {
        "type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"],
    }  # fmt: skip
    assert config["created"] == "2026-01-01T00:00:00Z"
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    run = config["config"]
    assert run["Entrypoint"] == [f"/usr/bin/{name}"]
    assert all(re.fullmatch(r"\d+/(tcp|udp)", port) for port in run["ExposedPorts"])
    assert all(re.fullmatch(r"[A-Z_]+=.+", word) for word in run["Env"])
    assert run["Labels"]["org.opencontainers.image.version"] == __version__
    assert run["Labels"]["org.opencontainers.image.licenses"] == "AGPL-3.0-or-later"


def test_the_gateway_is_not_root_and_has_a_folder_of_its_own(files: dict[str, bytes]) -> None:
    manifest, config = images(files)["gateway"]
    assert config["config"]["User"] == "65532:65532"
    assert "8088/tcp" in config["config"]["ExposedPorts"]
    layer = gzip.decompress(blob(files, manifest["layers"][0]))
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        owned = archive.getmember("var/lib/gateway")
        agents, shared = (archive.getmember(n) for n in ("var/lib/covey", "run/covey-gateway"))
    assert (owned.uid, owned.gid, owned.mode) == (65532, 65532, 0o700)
    assert (agents.uid, agents.mode) == (0, 0o700)
    # Where the two meet; the gateway is nobody there, and root's socket is elsewhere.
    assert (shared.uid, shared.mode) == (0, 0o755)
    socket = "/run/covey-gateway/agent.sock"
    assert f"COVEY_GATEWAY_SOCKET={socket}" in config["config"]["Env"]
    assert f"COVEY_NODE_GATEWAY_SOCKET={socket}" in images(files)["agent"][1]["config"]["Env"]


def test_what_is_in_the_layer(files: dict[str, bytes]) -> None:
    manifest, _ = images(files)["agent"]
    layer = gzip.decompress(blob(files, manifest["layers"][0]))
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        members = {member.name: member for member in archive}
    # A container has its host's kernel, and no init.
    assert not {"boot", "lib/modules", "etc/init.d"} & members.keys()
    assert list(members) == sorted(members)
    assert members["usr/bin/sh"].linkname == "/bin/busybox"
    assert (members["usr/bin/agent"].mode, members["etc/shadow"].mode) == (0o755, 0o600)
    assert members["tmp"].mode == 0o1777
    assert {member.mtime for member in members.values()} == {EPOCH_S}


def test_the_same_root_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        oci.write(tree(tmp_path / name / "root"), "aarch64", EPOCH_S, tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert not list(tmp_path.glob(".*"))
