"""Facts are gathered from a machine that is made of files, and from this one."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import pytest

from agent import config
from agent.config import Config
from agent.doctor import computers, links, look, sockets
from agent.doctor.facts import NET_ADMIN, NET_RAW, Agent, Gpu, Network, Port
from agent.engine import devices
from agent.errors import NotRunning
from agent.membership.store import StateDir

NOW = 1.79e9


def settings(state: Path, *more: str) -> Config:
    return config.load(Path(os.devnull), {}, [f"node.state_dir={state}", *more])[0]


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_kernels_wireguard_is_found_loaded_built_in_or_as_a_file(tmp_path: Path) -> None:
    folder = f"lib/modules/{platform.release()}"
    assert not look._kernel_has("wireguard", tmp_path)
    write(tmp_path, **{f"{folder}/modules.dep": "kernel/drivers/net/wireguardish.ko: \n"})
    assert not look._kernel_has("wireguard", tmp_path)
    dep = "kernel/drivers/net/wireguard/wireguard.ko.zst: kernel/lib/x.ko\n"
    for files in (
        {f"{folder}/modules.dep": dep},
        {f"{folder}/modules.builtin": "kernel/drivers/net/wireguard/wireguard.ko\n"},
        {"sys/module/wireguard/version": "1.0.0\n"},
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        write(root, **files)
        assert look._kernel_has("wireguard", root)


def test_why_the_tun_device_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "tun"
    assert look._tun_fault(path) == f"there is no {path}"
    path.mkdir()
    assert look._tun_fault(path) == f"{path}: Is a directory"
    path.rmdir()
    path.touch()
    assert look._tun_fault(path) == ""


@pytest.mark.parametrize(
    ("mask", "rights"),
    [
        ("0000000000003000", {NET_ADMIN, NET_RAW}),
        ("0000000000001000", {NET_ADMIN}),
        ("0000000000002000", {NET_RAW}),
        ("0000000000000fff", set()),
    ],
)
def test_capabilities_are_read_as_the_kernel_says_them(
    tmp_path: Path, mask: str, rights: set[str]
) -> None:
    write(tmp_path, status=f"Name:\tagent\nCapPrm:\tffff\nCapEff:\t{mask}\n")
    assert look._capabilities(tmp_path / "status") == rights


def test_gpus_are_read_from_the_bus(tmp_path: Path) -> None:
    for place, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"), ("0000:02:00.0", "0x1002", "0x030000"),
        ("0000:03:00.0", "0x1af4", "0x030000"), ("0000:04:00.0", "0x10de", "0x040300"),
    ):  # fmt: skip
        at = f"sys/bus/pci/devices/{place}"
        write(tmp_path, **{f"{at}/vendor": f"{vendor}\n", f"{at}/class": f"{kind}\n"})
    assert computers.gpus(tmp_path) == (Gpu("NVIDIA", "0000:01:00.0"), Gpu("AMD", "0000:02:00.0"))


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release",
            "580.65.06",
        ),
        ("NVRM version: something else", "of unknown version"),
    ],
)
def test_nvidias_driver_is_told_by_its_own_file(tmp_path: Path, line: str, version: str) -> None:
    assert computers.nvidia_driver(tmp_path) == ""
    write(tmp_path, **{"proc/driver/nvidia/version": f"{line}\nGCC version: 12\n"})
    assert computers.nvidia_driver(tmp_path) == version


def test_the_build_is_read_from_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "library_folder", lambda: None)
    assert not computers.build().installed
    monkeypatch.setattr(devices, "library_folder", lambda: tmp_path)
    (tmp_path / "libggml-cpu.so").touch()
    assert computers.build().backends == ()
    (tmp_path / "libggml-cuda.so").write_bytes(b"\x7fELF\0libstdc++.so.6\0libcudart.so.12\0\0")
    assert (computers.build().backends, computers.build().cuda) == (("cuda",), 12)


def test_a_cpu_is_masked_where_it_announces_what_the_kernel_gives_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert computers.masked(tmp_path) == ()
    write(tmp_path, **{"proc/cpuinfo": "processor : 0\nflags : fpu avx2 amx_tile amx_int8\n"})
    for usable, masked in ((False, ("AMX",)), (True, ())):
        monkeypatch.setattr(computers, "_has_tiles", lambda usable=usable: usable)
        assert computers.masked(tmp_path) == masked


def test_who_has_a_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        udp.bind(("127.0.0.1", 0))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        wanted = (
            Port("udp", udp.getsockname()[1], "network.listen_port"),
            Port("tcp", tcp.getsockname()[1], "network.control_port"),
        )
        found = sockets.taken(wanted)
        assert [taken.port for taken in found] == list(wanted)
        assert all(taken.holder.endswith(f"(pid {os.getpid()})") for taken in found)
    assert sockets.taken(wanted) == ()


def test_a_connection_from_a_port_is_no_listener(tmp_path: Path) -> None:
    lines = "header\n 0: 0100007F:0FA1 0200007F:0016 01 0:0 0:0 0 0 0 77 1\n"
    write(tmp_path, **{"proc/net/tcp": lines})
    assert sockets.taken((Port("tcp", 0xFA1, "network.control_port"),), tmp_path) == ()


def test_a_place_that_cannot_be_looked_at_is_on_its_parents_disk(tmp_path: Path) -> None:
    (disk,) = look._disks([tmp_path / "no" / ("x" * 300), tmp_path])
    assert (disk.path, disk.free > 0) == (str(tmp_path), True)


def test_this_machine_is_read_without_a_fault(tmp_path: Path) -> None:
    found = look.facts(settings(tmp_path / "state"), None, NotRunning("no agent", hint="Start it."))
    assert (found.fault, found.hint, found.member) == ("no agent", "Start it.", None)
    assert found.machine.free_memory > 0
    assert found.machine.installed_at < found.machine.now
    assert [disk.path for disk in found.machine.disks] == [str(tmp_path)]
    assert found.machine.build.installed
    assert "lo" not in {link.name for link in links.look().links}


def test_what_the_state_directory_says_of_the_mesh(tmp_path: Path) -> None:
    chosen = settings(tmp_path / "state", "network.ipv4_network=10.9.0.0/16")
    with StateDir(chosen.state_dir).lock() as state:
        state.create_mesh("home", "box", NOW)
    agent = Agent(pid=os.getpid(), network=Network("kernel", 6000))
    found = look.facts(chosen, agent)
    assert found.member is not None
    assert (found.member.mesh, found.member.not_before) == ("home", NOW)
    assert (str(found.wanted.ipv4_network), found.wanted.wireguard_port) == ("10.9.0.0/16", 6000)
    assert found.machine.taken == ()
    (chosen.state_dir / "mesh.json").write_text("{")
    found = look.facts(chosen, None, NotRunning("no agent"))
    assert "mesh.json" in found.state_fault
    assert found.hint
