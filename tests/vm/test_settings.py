"""What covey.toml sets, on a flashed machine: ssh, a proxy, a mistake on the LAN, the button."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from appliance import Appliance

ROOT = Path(__file__).parents[2]
START_S = 900.0
ANSWER_S = 120.0
_GLOBAL_HEADER_BYTES, _PACKET_HEADER = 24, struct.Struct("<IIII")
pytestmark = pytest.mark.timeout(3600)


def flash(image: Path, disk: Path, *words: object) -> None:
    command = [sys.executable, "-m", "image.flashing", "--image", image, "--device", disk, *words]
    done = subprocess.run(
        [str(word) for word in command], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def second_port(forwarded: int, dump: Path) -> list[str]:
    """Return QEMU's words for a second port: 22 is reached by `forwarded`, packets are dumped."""
    network = f"user,id=second,net=10.0.3.0/24,hostfwd=tcp:127.0.0.1:{forwarded}-:22"
    return [
        "-netdev", network, "-device", "virtio-net-pci,netdev=second",
        "-object", f"filter-dump,id=dump,netdev=second,file={dump}",
    ]  # fmt: skip


def listening(monitor: Path) -> list[str]:
    """Return QEMU's words for a socket that takes `order`s."""
    return ["-monitor", f"unix:{monitor},server=on,wait=off"]


def order(monitor: Path, *commands: str) -> None:
    """Have QEMU do what is done to the machine by hand."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(str(monitor))
        # What is left before it is done is not done.
        for command in (*commands, ""):
            said = b""
            while not said.rstrip(b" ").endswith(b"(qemu)"):
                said += sock.recv(4096)
            sock.sendall(f"{command}\n".encode())


def packets(dump: Path) -> list[bytes]:
    """Return the packets of a file of the format pcap, as far as it was written."""
    raw, at, found = dump.read_bytes(), _GLOBAL_HEADER_BYTES, []
    while at + _PACKET_HEADER.size <= len(raw):
        *_, size, _ = _PACKET_HEADER.unpack_from(raw, at)
        at += _PACKET_HEADER.size
        found.append(raw[at : at + size])
        at += size
    return found


class Ssh:
    """Commands on the machine, by ssh with a key."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.key = folder / "id"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)

    def run(self, *words: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        command = [
            "ssh", "-F", "none", "-p", str(self._port), "-o", "StrictHostKeyChecking=accept-new",
            "-o", f"UserKnownHostsFile={self._folder / 'known'}", "-o", "BatchMode=yes",
            "-o", "ConnectTimeout=60", *options, "root@127.0.0.1", *words,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    def said(self, *words: str) -> str:
        done = self.run(*words, options=["-i", str(self.key), "-o", "IdentitiesOnly=yes"])
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_ssh_is_for_the_key_alone_and_the_power_button_ends_everything(
    image: Path, tmp_path: Path
) -> None:
    port, dump, monitor = free_port(), tmp_path / "dump", tmp_path / "monitor"
    ssh = Ssh(tmp_path, port)
    disk = tmp_path / "flashed.img"
    password = tmp_path / "password"
    password.write_text("sw: rd\n")
    flash(
        image, disk, "--name", "shed-1", "--ssh-key", f"{ssh.key}.pub",
        "--proxy", "http://proxy.lan:3128", "--proxy-user", "shed",
        "--proxy-password-file", password,
    )  # fmt: skip
    machine = Appliance(disk, tmp_path)
    devices = [*second_port(port, dump), *listening(monitor)]
    with machine.running(devices=devices):
        machine.wait_for("ssh: root, with covey.toml's keys; this machine's is SHA256:", START_S)
        fingerprint = machine.console().partition("this machine's is ")[2].split()[0]
        assert ssh.said("hostname") == "shed-1\n"
        known = subprocess.run(
            ["ssh-keygen", "-l", "-f", tmp_path / "known"], capture_output=True, text=True,
            check=True,
        ).stdout  # fmt: skip
        assert fingerprint in known
        # No key, no password, no forwarding.
        refused = ssh.run("true", options=["-o", "PubkeyAuthentication=no"])
        assert refused.returncode == 255 and "(publickey)" in refused.stderr
        # The agent's proxy; and the file on the boot partition is as it was, for there is no mesh.
        line = "https_proxy=http://shed:sw%3A%20rd@proxy.lan:3128"
        script = ". /run/covey/proxy; env | grep ^https_proxy"
        assert ssh.said(script).strip() == line
        assert ssh.said("stat -c %a /run/covey/proxy /run/covey/ssh_keys").split() == ["600", "600"]
        assert ssh.said("nft list set inet appliance open").count("22") == 1
        host_key = ssh.said("sha256sum /data/ssh/host_key")
        # What the button does; everything ends, and the partitions are unmounted.
        order(monitor, "system_powerdown")
        machine.wait_for_end(ANSWER_S * 5)
    assert machine.is_clean()
    # The same key of the machine at its next start; and without keys in the file, nobody gets in.
    with machine.running(devices=devices):
        machine.wait_for(f"this machine's is {fingerprint}", START_S)
        assert ssh.said("sha256sum /data/ssh/host_key") == host_key
        ssh.said("poweroff")
        machine.wait_for_end(ANSWER_S * 5)
    assert machine.is_clean()
    machine.write("covey.toml", 'name = "Shed 1"\n')
    with machine.running(devices=devices):
        machine.wait_for("    line 1, name: “Shed 1” cannot be a name", START_S)
        assert "ssh: root" not in machine.console()
        assert ssh.run("true").returncode == 255
        _heard(dump, "1=line 1, name: “Shed 1” cannot be a name")


def test_a_port_that_is_plugged_in_later_gets_its_address(image: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "monitor"
    machine = Appliance(image, tmp_path)
    networks = [f"user,id={name},net=10.0.{net}.0/24" for name, net in (("late", 8), ("again", 9))]
    devices = [word for network in networks for word in ("-netdev", network)]
    with machine.running(devices=[*devices, *listening(monitor)]):
        machine.wait_for("Addresses: 10.0.2.15\n", START_S)
        order(monitor, "device_add virtio-net-pci,netdev=late,id=plugged")
        _shows(machine, "10.0.2.15, 10.0.8.15")
        order(monitor, "device_del plugged")
        _shows(machine, "10.0.2.15")
        order(monitor, "device_add virtio-net-pci,netdev=again,id=other")
        _shows(machine, "10.0.2.15, 10.0.9.15")


def _shows(machine: Appliance, addresses: str) -> None:
    """Wait until the screen has these addresses and no more."""
    deadline = time.monotonic() + ANSWER_S
    while machine.console().rpartition("Addresses: ")[2].splitlines()[0] != addresses:
        assert time.monotonic() < deadline, machine.console()
        time.sleep(0.5)


def _heard(dump: Path, words: str) -> None:
    """Wait for a packet of multicast DNS with these words."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        for packet in packets(dump):
            # To 224.0.0.251 by way of its MAC address (RFC 1112 §6.4).
            if packet.startswith(b"\x01\x00\x5e\x00\x00\xfb") and words.encode() in packet:
                return
        time.sleep(0.5)
    raise AssertionError(f"nobody said {words!r} on the LAN")
