"""The appliance's root as OCI images, for the agent and for the gateway: one layer, two configs.

What is built is one tar in the form of OCI's image layout 1.0 (`oci-archive:FILE:agent`), with the
names that containerd gives them, and the list that `docker load` reads.
A container has its host's kernel, so kernel, modules and firmware stay out. The same root gives the
same bytes. What an image is made of is a core; `write` is the shell. Used by image/make alone.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.errors import EnvironmentFault
from image.disk.write import replacing

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_INDEX = "application/vnd.oci.image.index.v1+json"
# OCI's words for the architectures, which are Go's.
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
# Of the appliance, and not of a container.
_LEFT_OUT = ("boot", "lib/modules", "lib/firmware", "usr/lib/modules", "usr/lib/firmware",
             "etc/runlevels", "etc/init.d", "etc/inittab", "low")  # fmt: skip
_MODES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "etc/shadow": 0o600}
# Nobody's: Debian and Alpine give their own below 1000, and people have theirs from there.
_USER = 65532
_STATE, _GATEWAYS_STATE = "/var/lib/covey", "/var/lib/gateway"
# Where the agent listens for a gateway, which reads there and changes nothing.
_READING = "/run/covey-gateway"
# Owner and mode of the folders that are made to be volumes: an engine's new volume takes both.
_VOLUMES = {
    _STATE[1:]: (0, 0o700), _READING[1:]: (0, 0o755), _GATEWAYS_STATE[1:]: (_USER, 0o700),
}  # fmt: skip
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = "SSL_CERT_FILE=/usr/lib/python3/dist-packages/certifi/cacert.pem"


@dataclass(frozen=True)
class Image:
    """What one image does: the program it starts and how, and what it says of itself."""

    name: str
    title: str
    command: tuple[str, ...]
    ports: tuple[str, ...]
    volume: str
    environment: tuple[str, ...] = ()
    user: str = ""

    @property
    def reference(self) -> str:
        """The name under which engines keep it; compose.yaml and kubernetes/ say the same."""
        return f"localhost/covey/{self.name}:latest"


IMAGES = (
    # Root in its container: it makes a WireGuard interface, for which it has to be given NET_ADMIN.
    Image(
        "agent", "Covey's agent", ("up", "--foreground"),
        ("443/tcp", "4001/tcp", "4001/udp", "51820/udp", "51821/udp"), _STATE,
        (f"COVEY_NODE_GATEWAY_SOCKET={_READING}/agent.sock",),
    ),
    Image(
        "gateway", "Covey's gateway: OpenAI's API for a mesh", ("serve",), ("8088/tcp",),
        _GATEWAYS_STATE,
        ("COVEY_GATEWAY_LISTEN=0.0.0.0:8088", f"COVEY_GATEWAY_SOCKET={_READING}/agent.sock",
         f"XDG_STATE_HOME={_GATEWAYS_STATE}", f"HOME={_GATEWAYS_STATE}"),
        f"{_USER}:{_USER}",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored, and the SHA-256 of its tar before it was compressed, in hex."""

    content: bytes
    diff: str


def layer(root: Path, epoch_s: int) -> Layer:
    """Return a tree as a layer: files root's, dated by `epoch_s`, in the order of their names."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({*_names(root), *_VOLUMES}):
            _add(archive, root, name, epoch_s)
    raw = plain.getvalue()
    return Layer(gzip.compress(raw, compresslevel=6, mtime=0), hashlib.sha256(raw).hexdigest())


def _add(archive: tarfile.TarFile, root: Path, name: str, epoch_s: int) -> None:
    """Add a file, folder or link of a tree to a tar; raises EnvironmentFault for what is none."""
    path = root / name
    member = tarfile.TarInfo(name)
    member.mtime = epoch_s
    if name in _VOLUMES:
        member.uid = member.gid = _VOLUMES[name][0]
        member.type, member.mode = tarfile.DIRTYPE, _VOLUMES[name][1]
        archive.addfile(member)
        return
    facts = path.lstat()
    member.mode = _MODES.get(name, stat.S_IMODE(facts.st_mode))
    if stat.S_ISLNK(facts.st_mode):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        archive.addfile(member)
    elif stat.S_ISDIR(facts.st_mode):
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    elif stat.S_ISREG(facts.st_mode):
        member.size = facts.st_size
        with path.open("rb") as file:
            archive.addfile(member, file)
    else:
        raise EnvironmentFault(f"{name} in the root is no file, folder or link")


def layout(found: Layer, arch: str, epoch_s: int, images: Iterable[Image]) -> dict[str, bytes]:
    """Return the files of an image layout with all images, by their paths in it."""
    created = datetime.datetime.fromtimestamp(epoch_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}

    def keep(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def blob(descriptor: dict[str, Any]) -> str:
        return f"blobs/{descriptor['digest'].replace(':', '/')}"

    platform = {"architecture": _ARCHES[arch], "os": "linux"}
    stored = keep(_LAYER, found.content)
    manifests, listed = [], []
    for image in images:
        config = keep(_CONFIG, _json(_config(image, found, platform, created)))
        manifest = {
            "schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [stored],
            "annotations": _labels(image, created),
        }  # fmt: skip
        manifests.append({
            **keep(_MANIFEST, _json(manifest)), "platform": platform,
            "annotations": {"org.opencontainers.image.ref.name": image.name,
                            "io.containerd.image.name": image.reference},
        })  # fmt: skip
        listed.append({"Config": blob(config), "RepoTags": [image.reference],
                       "Layers": [blob(stored)]})  # fmt: skip
    files["index.json"] = _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests})
    files["manifest.json"] = _json(listed)
    return files


def write(root: Path, arch: str, epoch_s: int, out: Path) -> None:
    """Write the images of a tree as one tar; raises EnvironmentFault, and then leaves none."""
    files = layout(layer(root, epoch_s), arch, epoch_s, IMAGES)
    try:
        with (
            replacing(out) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name, content in sorted(files.items()):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), epoch_s
                archive.addfile(member, io.BytesIO(content))
    except OSError as error:
        raise EnvironmentFault(
            f"{out} cannot be written: {error.strerror or error}",
            hint="Check the folder's owner and the free space, then try again.",
        ) from None


def _config(
    image: Image, found: Layer, platform: Mapping[str, str], created: str
) -> dict[str, Any]:
    run: dict[str, Any] = {
        "Env": [_PATH, _CERTIFICATES, *image.environment],
        "Entrypoint": [f"/usr/bin/{image.name}"],
        "Cmd": list(image.command),
        "ExposedPorts": {port: {} for port in image.ports},
        "Volumes": {image.volume: {}},
        "WorkingDir": "/",
        "Labels": _labels(image, created),
        "StopSignal": "SIGTERM",
    }
    if image.user:
        run["User"] = image.user
    return {
        "created": created, **platform, "config": run,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{found.diff}"]},
        "history": [{"created": created, "created_by": "image/build --oci"}],
    }  # fmt: skip


def _labels(image: Image, created: str) -> dict[str, str]:
    facts = {
        "title": image.title, "version": __version__, "created": created,
        "licenses": "AGPL-3.0-or-later",
    }  # fmt: skip
    return {f"org.opencontainers.image.{key}": value for key, value in facts.items()}


def _names(root: Path) -> Iterable[str]:
    """Yield the paths of all that is in a tree and belongs into a container."""
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if str(here / name) not in _LEFT_OUT]
        found = (str(here / name) for name in (*folders, *names))
        yield from (name for name in found if name not in _LEFT_OUT)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
