"""The report that `agent doctor --bundle` writes: what was found, and what it was found from.

One .tar.gz that a person can send to whoever helps. It names machines, addresses and models; keys,
tickets and passwords are taken out (`redact.py`). A shell.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent import config as configuration
from agent.config import Config
from agent.doctor import redact
from agent.doctor.facts import Facts
from agent.doctor.redact import Redactor
from agent.errors import StateError
from agent.health import HealthItem
from agent.identity import keyfile, privatefile
from agent.membership.statefiles import NetworkKeysFile
from agent.unreadable import UNREADABLE

FOLDER = "covey-report"
# Of the local API, what tells how a node stands.
ANSWERS = (
    "status", "peers", "netcheck", "members", "deployments", "models", "acl", "events?after=0",
    "logs",
)  # fmt: skip
_LOG_BYTES = 512 << 10
_PACKAGES = (
    "aiohttp", "click", "cryptography", "kademlia", "libp2p", "llama-cpp-python", "msgspec",
    "PyNaCl", "pyroute2", "trio",
)  # fmt: skip


def write(
    path: Path, settings: Config, sources: Mapping[str, str], facts: Facts,
    items: Iterable[HealthItem], answers: Mapping[str, Any],
) -> list[str]:  # fmt: skip
    """Write the report to `path` (mode 0600, whole or not at all); return the names in it.

    `answers`: what the agent said, by its path in the API. Raises StateError.
    """
    cleaner = Redactor(_secrets(settings.state_dir))
    files = {
        f"{name}.json": json.dumps(cleaner.value(_plain(value)), indent=2)
        for name, value in (
            ("items", list(items)),
            ("versions", _versions()),
            ("configuration", _configuration(settings, sources)),
            ("facts", replace(facts, agent=None, machine=replace(facts.machine, ruleset=None))),
            ("firewall", facts.machine.ruleset),
            *((f"agent/{path.partition('?')[0]}", answer) for path, answer in answers.items()),
        )
    }
    log = _tail(settings.state_dir / "agent.log")
    if log:
        files["agent.log"] = cleaner.text(log)
    privatefile.replace(path, _packed(files, facts.machine.now))
    return sorted(files)


def _packed(files: Mapping[str, str], now: float) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in files.items():
            content = text.encode()
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(now)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=int(now))


def _plain(value: Any) -> Any:
    """Return what JSON can say; addresses and networks are text."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=str)


def _versions() -> dict[str, str]:
    found = {
        "covey": __version__, "python": sys.version, "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
    }  # fmt: skip
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _configuration(settings: Config, sources: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: {"value": value, "source": sources.get(key, "default")}
        for key, value in configuration.flatten(settings).items()
    }


def _tail(path: Path) -> str:
    """Return a log's last lines, "" for none."""
    try:
        with path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _secrets(state_dir: Path) -> Iterator[str]:
    """Return this node's secrets in all forms; those that cannot be read are not its reader's."""
    for raw in _secret_bytes(state_dir):
        yield from redact.forms(raw)


def _secret_bytes(state_dir: Path) -> Iterator[bytes]:
    for name in ("node.key", "root.key"):
        try:
            key = keyfile.load_if_there(state_dir / name)
        except StateError:
            continue
        if key is not None:
            yield key.seed
            yield key.wireguard_private
    try:
        raw = privatefile.read(state_dir / "networkkeys.json", "network keys")
        if raw is not None:
            yield from (
                stored.key for stored in msgspec.json.decode(raw, type=NetworkKeysFile).keys
            )
    except (StateError, *UNREADABLE):
        return
