"""The appliance's own scripts: a shell can read them, and what they name is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from image.make import assemble, tree
from image.node import slotblocks
from image.node.settings import read

ROOT = tree.OVERLAY
SCRIPTS = sorted((ROOT / "usr/lib/covey").iterdir())
SERVICES = sorted((ROOT / "etc/init.d").iterdir())


@pytest.mark.parametrize("script", [*SCRIPTS, *SERVICES, ROOT.parent / "boot/init.sh"], ids=str)
def test_a_shell_can_read_it(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)


def test_what_is_started_can_be_run() -> None:
    programs = [*SCRIPTS, *SERVICES, *(ROOT / "usr/bin").iterdir()]
    assert [path for path in programs if not os.access(path, os.X_OK)] == []


def test_each_service_starts_in_one_runlevel() -> None:
    started = [name for names in tree._RUNLEVELS.values() for name in names]
    assert sorted(started) == [path.name for path in SERVICES]


def test_services_need_services_that_are_there() -> None:
    names = {path.name for path in SERVICES}
    for path in SERVICES:
        for needed in re.findall(r"^\s+(?:need|after) (.*)", path.read_text(), re.MULTILINE):
            assert set(needed.split()) <= names, path


def test_modules_that_scripts_run_are_there() -> None:
    named = {
        found
        for path in [*SCRIPTS, *SERVICES]
        for found in re.findall(r"-m (image\.node\.\w+)", path.read_text())
    }
    assert named == {
        f"image.node.{name}" for name in ("agentstart", "startup", "watching", "resetdone")
    }
    for name in named:
        assert (tree.REPOSITORY / f"{name.replace('.', '/')}.py").exists()


def test_nothing_on_the_data_partition_can_be_run() -> None:
    mounts = re.findall(r"^mount -t .*", (ROOT / "usr/lib/covey/disk").read_text(), re.MULTILINE)
    assert len(mounts) == 2
    for line in mounts:
        options = re.search(r"-o (\S+)", line)
        assert options and {"noexec", "nosuid", "nodev"} <= set(options[1].split(",")), line


def test_nobody_can_log_in() -> None:
    fields = [line.split(":") for line in (ROOT / "etc/shadow").read_text().splitlines()]
    assert {field[1] for field in fields} == {"!"}
    assert "getty" not in (ROOT / "etc/inittab").read_text()


def test_the_boot_partition_begins_with_a_reset_and_a_file_that_sets_nothing(
    tmp_path: Path,
) -> None:
    files = assemble.boot_files(tmp_path, tmp_path / "BOOTX64.EFI")
    blocks = (files["covey/slots0.env"].read_bytes(), files["covey/slots1.env"].read_bytes())
    assert slotblocks.latest(blocks).state.reset
    raw = files["covey.toml"].read_bytes()
    assert b"\r\n" in raw and not read(raw).mistakes
    assert {"EFI/BOOT/BOOTX64.EFI", "covey/grub.cfg", "covey/slots.cfg"} < files.keys()


def test_the_agent_is_no_root_and_cannot_become_it(tmp_path: Path) -> None:
    """The script is run with programs that say how they were called; its folders are others."""
    said = tmp_path / "said"
    text = (ROOT / "usr/lib/covey/agent").read_text()
    for folder in ("/var/lib/covey", "/run/covey"):
        text = text.replace(folder, f"{tmp_path}{folder}")
    (tmp_path / "run").mkdir()
    for folder in ("bin", "run/covey", "var/lib/covey"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/covey/wish").write_text("a ticket\n")
    (tmp_path / "run/covey/proxy").write_text("export https_proxy='http://p:8080'\n")
    (tmp_path / "run/covey/may-start").touch()
    for program in ("chown", "setpriv"):
        file = tmp_path / "bin" / program
        file.write_text(f'#!/bin/sh\necho {program} "$@" >>{said}\n[ -t 0 ] || cat >>{said}\n')
        file.chmod(0o755)
    subprocess.run(
        ["sh", "-c", text], check=True, stdin=subprocess.DEVNULL,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}, timeout=60,
    )  # fmt: skip
    chown, setpriv, *told = said.read_text().splitlines()
    assert chown == f"chown covey:covey {tmp_path}/run/covey-agent"
    words = setpriv.split()
    assert {"--reuid=covey", "--regid=covey", "--clear-groups", "--no-new-privs"} <= set(words)
    rights = "-all,+net_admin,+net_raw,+net_bind_service"
    kinds = ("bounding-set", "inh-caps", "ambient-caps")
    assert {f"--{kind}={rights}" for kind in kinds} <= set(words)
    assert words[-3:] == ["python3", "-m", "image.node.agentstart"]
    assert told == ["https_proxy=http://p:8080", "", "join", "a ticket"]
    # What root's services read words from is in a folder that the agent cannot write to.
    assert os.readlink(tmp_path / "run/covey/agent.sock").endswith("/run/covey-agent/agent.sock")


@pytest.fixture
def ports(tmp_path: Path) -> Callable[..., list[str]]:
    """Run the network's script with folders of the test's; return what it had others do."""
    said = tmp_path / "said"
    text = (ROOT / "usr/lib/covey/network").read_text()
    for folder in ("/run/covey", "/sys/class/net", "/etc/resolv.conf"):
        text = text.replace(folder, f"{tmp_path}{folder}")
    for folder in ("bin", "run/covey", "sys/class/net/lo", "etc"):
        (tmp_path / folder).mkdir(parents=True)
    for program in ("ip", "udhcpc", "kill"):
        file = tmp_path / "bin" / program
        file.write_text(f'#!/bin/sh\necho {program} "$@" >>{said}\n')
        file.chmod(0o755)

    def run(*words: str) -> list[str]:
        said.write_text("")
        # `kill` is built into a shell; one that is a function is found before that.
        script = f'kill() {{ {tmp_path}/bin/kill "$@"; }}\n{text}\nwait\n'
        subprocess.run(
            ["sh", "-c", script, "network", *words], check=True, timeout=60,
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        )  # fmt: skip
        return said.read_text().splitlines()

    return run


def plug(folder: Path, name: str, *, wired: bool = True) -> None:
    (folder / "sys/class/net" / name / "device").mkdir(parents=True)
    if not wired:
        (folder / "sys/class/net" / name / "phy80211").mkdir()


def test_a_port_that_comes_late_is_brought_up_once(
    tmp_path: Path, ports: Callable[..., list[str]]
) -> None:
    plug(tmp_path, "eth0")
    plug(tmp_path, "wlan0", wired=False)
    # Before the settings were read nobody knows of an address by hand.
    assert ports("eth0") == []
    lo, up, asked = ports()
    assert (lo, up) == ("ip link set lo up", "ip link set eth0 up")
    assert asked.startswith("udhcpc ") and " -i eth0 " in asked
    plug(tmp_path, "eth1")
    assert [line.split()[0] for line in ports("eth1")] == ["ip", "udhcpc"]
    assert ports("eth1") == ports("wlan0") == ports("lo") == []
    assert ports() == ["ip link set lo up"]
    # Pulled out and put in again.
    pid = tmp_path / "run/covey/ports/eth1/pid"
    pid.write_text("4711\n")
    assert ports("gone", "eth1") == ["kill 4711"]
    assert ports("gone", "eth1") == ports("gone", "eth7") == []
    assert ports("eth1")[0] == "ip link set eth1 up"


@pytest.mark.parametrize("named", ["", "eth1"])
def test_one_port_has_the_address_by_hand(
    tmp_path: Path, ports: Callable[..., list[str]], named: str
) -> None:
    (tmp_path / "run/covey/network").write_text(
        f"ADDRESS=192.0.2.9/24 GATEWAY=192.0.2.1 DNS='192.0.2.1 192.0.2.2' INTERFACE={named}\n"
    )
    first, other = ("eth1", "eth0") if named else ("eth0", "eth1")
    plug(tmp_path, other if named else first)
    ports()
    plug(tmp_path, first if named else other)
    said = ports("eth1")
    given = f"ip address replace 192.0.2.9/24 dev {first}"
    assert (given in said) == bool(named)
    assert (tmp_path / "run/covey/ports/by-hand").read_text() == f"{first}\n"
    assert (tmp_path / "etc/resolv.conf").read_text().splitlines() == [
        "nameserver 192.0.2.1", "nameserver 192.0.2.2"
    ]  # fmt: skip
    # Whoever pulls that port out and puts it in again gets it back.
    ports("gone", first)
    assert given in ports(first)


def test_what_is_plugged_in_gets_its_driver_and_a_port_its_address(tmp_path: Path) -> None:
    for name in ("plugged", "network"):
        shutil.copy(ROOT / "usr/lib/covey/plugged", tmp_path / name)
    for path in (tmp_path / "network", tmp_path / "modprobe"):
        path.write_text(f'#!/bin/sh\necho {path.name} "$@"\n')
        path.chmod(0o755)

    def told(**words: str) -> str:
        return subprocess.run(
            [tmp_path / "plugged"], check=True, capture_output=True, text=True,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", **words},
        ).stdout.strip()  # fmt: skip

    assert told(ACTION="add", SUBSYSTEM="net", INTERFACE="eth1") == "network eth1"
    assert told(ACTION="remove", SUBSYSTEM="net", INTERFACE="eth1") == "network gone eth1"
    assert told(ACTION="add", SUBSYSTEM="usb", MODALIAS="usb:v0B95") == "modprobe -bq usb:v0B95"
    assert told(ACTION="add", SUBSYSTEM="block") == ""
    assert told(ACTION="change", SUBSYSTEM="net", INTERFACE="eth1") == ""
    assert told(ACTION="remove", MODALIAS="usb:v0B95") == ""


def test_the_agents_user_has_a_name_an_own_group_and_no_shell() -> None:
    users = [line.split(":") for line in (ROOT / "etc/passwd").read_text().splitlines()]
    (covey,) = [user for user in users if user[0] == "covey"]
    assert covey[2:4] == ["900", "900"] and covey[6] == "/bin/false"
    assert "covey:x:900:" in (ROOT / "etc/group").read_text().splitlines()
    assert [user[0] for user in users if user[2] == "0"] == ["root"]
