"""The last good state as an ordinary wg-quick file, written and read through wgconfig.

Shell: one small file. So that an operator can look at it, and bring the mesh up without Covey with
`wg-quick up FILE`. Holds the private key: mode 0600. The daemon writes it after changes; its own
state (membership) is kept elsewhere, this file is never the source of who is a member.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from wgconfig import WGConfig

from agent import endpoint as endpoints
from agent.errors import StateError
from agent.overlay.device import (
    DEFAULT_MTU,
    KEY_BYTES,
    DeviceConfig,
    PeerConfig,
    check_config,
    parse_endpoint,
)

_COMMENT = "# node "
# A name is a comment in a file that root may run: only what can do no harm there.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_INTERFACE_FIELDS = {"PrivateKey", "Address", "ListenPort", "MTU"}
_PEER_FIELDS = {"PublicKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"}


@dataclass(frozen=True)
class WgQuickFile:
    """What the file holds: the device, its peers, and their names by public key."""

    device: DeviceConfig
    peers: tuple[PeerConfig, ...] = ()
    names: Mapping[bytes, str] = field(default_factory=dict)


def write(path: Path, content: WgQuickFile) -> None:
    """Replace the file whole: temporary file, mode 0600, fsync, rename. StateError if it cannot."""
    config = _to_wgconfig(content)
    temporary: Path | None = None
    try:
        descriptor, text = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        temporary = Path(text)
        with os.fdopen(descriptor, "w") as stream:
            config.write_to_fileobj(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        temporary = None
        _sync_directory(path.parent)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="Make room or allow it, then try again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read(path: Path) -> WgQuickFile:
    """Read such a file back. StateError if it is missing, damaged, or says what we cannot keep."""
    try:
        lines = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StateError(f"cannot read {path}: {reason}") from error
    try:
        return _from_text(lines)
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # wgconfig's own, too
        raise StateError(
            f"{path} is not a WireGuard file that Covey can use: {error}",
            hint="Remove it; Covey writes it anew from its own state.",
        ) from error


def _to_wgconfig(content: WgQuickFile) -> WGConfig:
    config = WGConfig()
    config.initialize_file("# Written by Covey; changes here are lost.")
    device = content.device
    config.add_attr(None, "PrivateKey", _encode(device.private_key))
    config.add_attr(None, "Address", ", ".join(str(address) for address in device.addresses))
    config.add_attr(None, "ListenPort", device.listen_port)
    config.add_attr(None, "MTU", device.mtu)
    for peer in content.peers:
        key = _encode(peer.node_public)
        name = _UNSAFE.sub("?", content.names.get(peer.node_public, ""))
        config.add_peer(key, _COMMENT + (name or "without a name"))
        if peer.allowed_ips:
            config.add_attr(key, "AllowedIPs", ", ".join(map(str, peer.allowed_ips)))
        if peer.endpoint is not None:
            config.add_attr(key, "Endpoint", endpoints.join(*peer.endpoint))
        if peer.keepalive_s:
            config.add_attr(key, "PersistentKeepalive", peer.keepalive_s)
    return config


def _from_text(text: str) -> WgQuickFile:
    config = WGConfig()
    config.lines = [line.rstrip() for line in text.splitlines()]
    config.invalidate_data()
    interface = config.get_interface()
    _only(interface, _INTERFACE_FIELDS)
    device = DeviceConfig(
        _decode(interface["PrivateKey"]),
        int(interface.get("ListenPort", 0)),
        tuple(ip_interface(item) for item in _items(interface["Address"])),
        int(interface.get("MTU", DEFAULT_MTU)),
    )
    check_config(device)
    peers: list[PeerConfig] = []
    names: dict[bytes, str] = {}
    for fields in config.get_peers(keys_only=False, include_details=True).values():
        comment = fields["_rawdata"][0]
        peer = _peer({key: value for key, value in fields.items() if not key.startswith("_")})
        peers.append(peer)
        if comment.startswith(_COMMENT):
            names[peer.node_public] = comment.removeprefix(_COMMENT)
    return WgQuickFile(device, tuple(peers), names)


def _peer(fields: Mapping[str, Any]) -> PeerConfig:
    _only(fields, _PEER_FIELDS)
    endpoint = fields.get("Endpoint")
    return PeerConfig(
        _decode(fields["PublicKey"]),
        parse_endpoint(endpoint) if endpoint else None,
        tuple(ip_network(item) for item in _items(fields.get("AllowedIPs", []))),
        int(fields.get("PersistentKeepalive", 0)),
    )


def _only(fields: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"it sets {unknown[0]}")


def _items(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _decode(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError("a key is damaged")
    return key


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
