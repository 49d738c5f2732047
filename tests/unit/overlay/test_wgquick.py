"""The wg-quick file: there and back, accepted by wg-quick, harmless, and whole."""

from __future__ import annotations

import os
import stat
import subprocess
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from agent.errors import StateError
from agent.overlay.device import DeviceConfig, PeerConfig
from agent.overlay.wgquick import WgQuickFile, read, write

DEVICE = DeviceConfig(
    bytes([8]) * 32, 51820, (ip_interface("fd12:3456:789a::1/48"), ip_interface("10.77.1.1/16"))
)
NEAR = PeerConfig(
    bytes([1]) * 32,
    ("2001:db8::7", 51820),
    (ip_network("fd12:3456:789a::2/128"), ip_network("10.77.2.2/32")),
    25,
)
FAR = PeerConfig(bytes([2]) * 32, ("203.0.113.9", 51821), (ip_network("10.77.3.3/32"),))
SILENT = PeerConfig(bytes([3]) * 32)
CONTENT = WgQuickFile(
    DEVICE, (NEAR, FAR, SILENT), {NEAR.node_public: "attic", FAR.node_public: "box-2"}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "covey0.conf"


def test_there_and_back(path: Path) -> None:
    write(path, CONTENT)
    again = read(path)
    assert again.device == DEVICE
    assert again.peers == CONTENT.peers
    assert again.names[NEAR.node_public] == "attic"
    assert "# node box-2\n[Peer]\n" in path.read_text()


def test_without_peers(path: Path) -> None:
    write(path, WgQuickFile(DEVICE))
    assert read(path) == WgQuickFile(DEVICE)


def test_only_we_may_read_it_and_no_other_file_stays(path: Path) -> None:
    previous = os.umask(0)
    try:
        write(path, CONTENT)
        write(path, WgQuickFile(DEVICE))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["covey0.conf"]


def test_wg_quick_accepts_it(path: Path) -> None:
    write(path, CONTENT)
    command = ["wg-quick", "strip", str(path)]
    if os.geteuid() != 0:  # wg-quick asks for root, here it only reads a file
        command = ["unshare", "--user", "--map-root-user", *command]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "warning" not in shown.stderr.lower()
    lines = shown.stdout.splitlines()
    assert "ListenPort = 51820" in lines
    assert "AllowedIPs = fd12:3456:789a::2/128, 10.77.2.2/32" in lines
    assert "Endpoint = [2001:db8::7]:51820" in lines
    assert "PersistentKeepalive = 25" in lines
    assert not [line for line in lines if line.startswith(("Address", "MTU"))]


def test_a_name_cannot_bring_in_a_line(path: Path) -> None:
    evil = "x\nPostUp = touch /tmp/covey-evil\n#! "
    write(path, WgQuickFile(DEVICE, (NEAR,), {NEAR.node_public: evil}))
    assert not [line for line in path.read_text().splitlines() if line.startswith("PostUp")]
    assert read(path).peers == (NEAR,)


def test_a_failed_write_keeps_the_last_good_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, CONTENT)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        write(path, WgQuickFile(DEVICE))
    assert path.read_text() == before
    assert os.listdir(path.parent) == ["covey0.conf"]


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot write"):
        write(tmp_path / "missing" / "covey0.conf", CONTENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("PrivateKey = C", "PrivateKey = "), "a key is damaged"),
        (lambda text: text.replace("[Interface]", "[Other]"), "Unsupported section"),
        (lambda text: text.replace("MTU = 1280", "PostUp = reboot"), "it sets PostUp"),
        (lambda text: text.replace("ListenPort = 51820", "ListenPort = x"), "invalid literal"),
        (lambda text: text.replace("10.77.1.1/16", "10.77.1.1/99"), "does not appear to be"),
        (lambda text: text.replace("203.0.113.9:51821", "203.0.113.9"), "is not an address"),
        (lambda text: text.replace("PersistentKeepalive", "PresharedKey"), "it sets PresharedKey"),
        (lambda text: text[:20], "not a WireGuard file"),
        (lambda text: "", "not a WireGuard file"),
    ],
)
def test_damaged_files_are_named(path: Path, change: object, words: str) -> None:
    assert callable(change)
    write(path, CONTENT)
    path.write_text(change(path.read_text()))
    with pytest.raises(StateError, match=words) as caught:
        read(path)
    assert str(path) in caught.value.message


def test_missing_or_not_text(path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StateError, match="it is not text"):
        read(path)
