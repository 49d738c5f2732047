"""Wifi: two radios of the kernel's own (mac80211_hwsim), an access point behind the one.

What covey.toml says becomes wpa_supplicant's file by `image/node`, and the appliance's own scripts
do the rest on the other radio: they connect, and take an address by DHCP.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from image.node import wifi
from image.node.settings import Wifi

SCRIPT = Path(__file__).parents[3] / "image/root/usr/lib/covey/wifi"
RUN = Path("/run/covey")
# Emulated, a handshake takes a second, and SAE some.
PATIENCE_S = 180.0
SECRET = 'a "long" # secret\\'
ACCESS_POINT = """\
interface=wlan1
driver=nl80211
ctrl_interface=/run/hostapd
ssid2={name}
hw_mode=g
channel=1
"""
WPA2 = f"wpa=2\nwpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\nwpa_passphrase={SECRET}\n"
WPA3 = (
    f"wpa=2\nwpa_key_mgmt=SAE\nrsn_pairwise=CCMP\nsae_password={SECRET}\nieee80211w=2\n"
    "sae_require_mfp=1\n"
)
DHCP = """\
interface wlan1
start 10.5.0.10
end 10.5.0.20
option subnet 255.255.255.0
option router 10.5.0.1
lease_file {folder}/leases
pidfile {folder}/pid
"""
INSIDE = ("ip", "netns", "exec", "router")


def run(words: str) -> str:
    return subprocess.run(words.split(), check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def radios() -> Iterator[None]:
    """wlan0 here, as on an appliance; wlan1 in the namespace of the router."""
    run("modprobe mac80211_hwsim radios=2")
    run("ip netns add router")
    radio = Path("/sys/class/net/wlan1/phy80211/name").read_text().strip()
    run(f"iw phy {radio} set netns name router")
    run("ip -n router address add 10.5.0.1/24 dev wlan1")
    yield
    run("ip netns delete router")
    run("rmmod mac80211_hwsim")


@contextmanager
def started(*command: object, log: Path, path: str = "") -> Iterator[None]:
    words = [str(word) for word in command]
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def router(folder: Path, name: str, security: str) -> Iterator[None]:
    """An access point with its network, and DHCP."""
    settings, dhcp = folder / "hostapd.conf", folder / "udhcpd.conf"
    settings.write_text(ACCESS_POINT.format(name=name.encode().hex()) + security)
    dhcp.write_text(DHCP.format(folder=folder))
    with (
        started(*INSIDE, "hostapd", settings, log=folder / "hostapd.log"),
        started(*INSIDE, "busybox", "udhcpd", "-f", dhcp, log=folder / "udhcpd.log"),
    ):
        yield


@contextmanager
def appliance(folder: Path, network: Wifi) -> Iterator[Path]:
    """The appliance's side; gives wpa_supplicant's log."""
    RUN.mkdir(exist_ok=True)
    (RUN / "wifi.conf").write_bytes(wifi.configuration(network))
    # A command of its own there, as busybox' others are.
    programs = folder / "bin"
    programs.mkdir()
    (programs / "udhcpc").symlink_to("/bin/busybox")
    log = folder / "wifi.log"
    with started(SCRIPT, log=log, path=str(programs)):
        try:
            yield log
        finally:
            pid = RUN / "wifi.pid"
            if pid.exists():
                os.kill(int(pid.read_text()), signal.SIGKILL)
                pid.unlink()
            run("ip -4 address flush dev wlan0")
            # A scan that was under way when its program was killed keeps the radio busy.
            run("ip link set wlan0 down")


def until(what: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > deadline:
            logs = [f"-- {path.name}\n{path.read_text()}" for path in folder.glob("*.log")]
            pytest.fail("\n".join(logs))
        time.sleep(0.5)


def has_address() -> bool:
    return "inet 10.5.0.1" in run("ip -o -4 address show dev wlan0")


@pytest.mark.parametrize(
    ("network", "security"),
    [
        (Wifi("Our network", SECRET, "DE"), WPA2),
        (Wifi("Café 猫", SECRET), WPA3),
        (Wifi("Guests", ""), ""),
    ],
    ids=["wpa2", "wpa3", "open"],
)
def test_it_connects_and_has_an_address(
    radios: None, tmp_path: Path, network: Wifi, security: str
) -> None:
    with router(tmp_path, network.network, security), appliance(tmp_path, network) as log:
        until(has_address, tmp_path)
        assert wifi.fault(log.read_text()) == ""
        # A cable would be the better way out.
        assert "default via 10.5.0.1 metric 600" in run("ip route show dev wlan0")
        assert "1 packets received" in run("busybox ping -c 1 -W 60 -I wlan0 10.5.0.1")


def test_a_wrong_password_is_told(radios: None, tmp_path: Path) -> None:
    wrong = Wifi("Ours", "another secret")
    with router(tmp_path, "Ours", WPA2), appliance(tmp_path, wrong) as log:
        until(lambda: "password is wrong" in (wifi.fault(log.read_text()) or ""), tmp_path)
        assert not has_address()
