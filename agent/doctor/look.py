"""Gathers the facts of this machine: files of the kernel, programs, sockets. A shell; it blocks.

Used by `agent doctor`, and by `watch.py` in a thread. What cannot be read counts as in order: to
see all takes the agent's rights. `root` is where /proc, /sys, /lib and /dev lie, for tests.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec

from agent.config import Config
from agent.deploy import machine as host
from agent.doctor import computers, links, sockets
from agent.doctor.facts import NET_ADMIN, NET_RAW, Agent, Disk, Facts, Machine, Member, Port, Wanted
from agent.errors import CoveyError, StateError
from agent.identity.addresses import DEFAULT_IPV4_NETWORK
from agent.membership.directory import Directory
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)

_ROOT = Path("/")
# linux/capability.h.
_CAPABILITIES = {NET_ADMIN: 12, NET_RAW: 13}
# nft lies where an ordinary user's PATH does not look. Rules of a large cluster take seconds.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_NFT_TIMEOUT_S = 10.0
# sys/timex.h: the state in which nobody sets the clock; and room for any struct timex.
_TIME_ERROR, _TIMEX_BYTES = 5, 512


def wanted(settings: Config) -> Wanted:
    """Return what the settings ask of the machine."""
    network = settings.network
    ports = (
        Port("udp", network.listen_port, "network.listen_port"),
        Port("udp", network.discovery_port, "network.discovery_port"),
        Port("udp", network.beat_port, "network.beat_port"),
        Port("tcp", network.control_port, "network.control_port"),
        Port("tcp", network.overlay_port, "network.overlay_port"),
    )
    return Wanted(
        interface=network.interface, backend=network.backend, wireguard_port=network.listen_port,
        ports=tuple(port for port in ports if port.number),
        ipv4_network=_network(network.ipv4_network), mdns=network.mdns,
        gpu=settings.engine.gpu == "auto",
    )  # fmt: skip


def facts(
    settings: Config, agent: Agent | None, fault: CoveyError | None = None, root: Path = _ROOT
) -> Facts:
    """Return all facts; `agent`: as it answered, None with the `fault` why it did not."""
    asked = wanted(settings)
    if agent is not None and agent.network.port:
        asked = replace(asked, wireguard_port=agent.network.port)
    member, state_fault = None, ""
    try:
        member = _member(settings.state_dir)
    except StateError as error:
        state_fault, fault = f"{error.message}.", error
    return Facts(
        wanted=asked, machine=machine(settings, asked, agent, root), member=member, agent=agent,
        fault=fault.message if fault else "", hint=fault.hint if fault else "",
        state_fault=state_fault,
    )  # fmt: skip


def machine(settings: Config, asked: Wanted, agent: Agent | None, root: Path = _ROOT) -> Machine:
    """Return the facts of this machine, with the agent's rights, or else this process's."""
    interfaces = links.look()
    left = {link.name for link in interfaces.links if link.ours}
    busy = () if agent is not None else sockets.taken(asked.ports, root)
    build = computers.build()
    return Machine(
        kernel=platform.release(), architecture=platform.machine(),
        kernel_wireguard=_kernel_has("wireguard", root),
        wireguard_go=shutil.which("wireguard-go", path=_PATH) is not None,
        tun_fault=_tun_fault(root / "dev/net/tun"),
        capabilities=_capabilities(root / f"proc/{agent.pid if agent else 'self'}/status"),
        ipv6=(root / "proc/sys/net/ipv6").exists(),
        links=interfaces.links, routes=interfaces.routes, uplinks=interfaces.uplinks,
        # What a killed agent left is taken over by the next one.
        taken=tuple(
            one for one in busy
            if asked.interface not in left or one.port.number != asked.wireguard_port
        ),
        ruleset=_ruleset(),
        now=time.time(), installed_at=Path(__file__).stat().st_mtime, synchronised=_synchronised(),
        disks=_disks([settings.state_dir, settings.models_dir]), free_memory=host.free_bytes(),
        gpus=computers.gpus(root), nvidia_driver=computers.nvidia_driver(root), build=build,
        masked=computers.masked(root),
        repacking=computers.repacking(settings.engine_cache) if build.installed else None,
    )  # fmt: skip


def _member(state_dir: Path) -> Member | None:
    """Return what the state directory says; StateError where it cannot be read."""
    directory = Directory(state_dir)
    mesh = directory.read_mesh()
    if mesh is None:
        return None
    certificate = directory.read_certificate()
    begins = float(certificate.not_before) if certificate else 0.0
    return Member(mesh.name, mesh.ipv4_network, begins)


def _network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError:
        return DEFAULT_IPV4_NETWORK  # `agent mesh create` says what is wrong with it


def _kernel_has(module: str, root: Path) -> bool:
    """Say whether the kernel has a module, or could load it."""
    if (root / "sys/module" / module).exists():
        return True
    folder = root / "lib/modules" / platform.release()
    return any(
        f"/{module}.ko" in text
        for name in ("modules.builtin", "modules.dep")
        if (text := _text(folder / name))
    )


def _tun_fault(path: Path) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return f"there is no {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _capabilities(status: Path) -> frozenset[str]:
    for line in _text(status).splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            mask = int(value, 16)
            return frozenset(name for name, bit in _CAPABILITIES.items() if mask >> bit & 1)
    return frozenset(_CAPABILITIES)


def _ruleset() -> Mapping[str, Any] | None:
    try:
        done = subprocess.run(
            ["nft", "-j", "list", "ruleset"], capture_output=True, check=False,
            timeout=_NFT_TIMEOUT_S, env={**os.environ, "PATH": _PATH}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        found = msgspec.json.decode(done.stdout) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, *UNREADABLE) as error:
        _log.debug("nftables' rules cannot be read: %s", error)
        return None
    return found if isinstance(found, dict) else None


def _synchronised() -> bool | None:
    """Say whether something keeps the kernel's clock right; None where the kernel does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _disks(places: Iterable[Path]) -> tuple[Disk, ...]:
    """Return the disks of these places, each once; what is not made yet is on its parent's."""
    found: dict[int, Disk] = {}
    for place in places:
        for path in (place, *place.parents):
            try:
                device, free = path.stat().st_dev, shutil.disk_usage(path).free
            except OSError:
                continue  # not made yet, or closed to this user
            found.setdefault(device, Disk(str(path), free))
            break
    return tuple(found.values())


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
