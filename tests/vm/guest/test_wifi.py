"""Wifi in the guest: two radios of the kernel's own (mac80211_hwsim), hostapd behind the one.

What covey.toml says becomes a file by `image/node`, and the appliance's own script does the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from image.node import wifi
from image.node.settings import Wifi

SCRIPT = Path(__file__).parents[3] / "image/root/usr/lib/covey/wifi"
RUN = Path("/run/covey")
PATIENCE_S = 180.0
SECRET = 'a "long" # secret\\'
ROUTER = """\
interface=wlan1
driver=nl80211
ctrl_interface=/run/hostapd
ssid2={name}
hw_mode=g
channel=1
"""
WPA2 = "wpa=2\nwpa_key_mgmt=WPA-PSK\nrsn_pairwise=CCMP\nwpa_passphrase={secret}\n"
WPA3 = (
    "wpa=2\nwpa_key_mgmt=SAE\nrsn_pairwise=CCMP\nsae_password={secret}\nieee80211w=2\n"
    "sae_require_mfp=1\n"
)
DHCPD = (
    "interface wlan1\nstart 10.5.0.10\nend 10.5.0.20\noption subnet 255.255.255.0\n"
    "lease_file {leases}\npidfile {pid}\n"
)


def run(words: str) -> str:
    return subprocess.run(words.split(), check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def radios() -> Iterator[None]:
    """wlan0 here, wlan1 in the namespace of the router."""
    run("modprobe mac80211_hwsim radios=2")
    run("ip netns add router")
    phy = (Path("/sys/class/net/wlan1/phy80211/name")).read_text().strip()
    run(f"iw phy {phy} set netns name router")
    run("ip netns exec router ip address add 10.5.0.1/24 dev wlan1")
    yield
    run("ip netns delete router")
    run("rmmod mac80211_hwsim")


@contextmanager
def started(*command: object, log: Path, path: str = "") -> Iterator[None]:
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def router(folder: Path, name: str, security: str) -> Iterator[None]:
    """A router with its network and DHCP."""
    settings, dhcp = folder / "hostapd.conf", folder / "udhcpd.conf"
    settings.write_text(ROUTER.format(name=name.encode().hex()) + security)
    dhcp.write_text(DHCPD.format(leases=folder / "leases", pid=folder / "pid"))
    inside = ("ip", "netns", "exec", "router")
    with (
        started(*inside, "hostapd", settings, log=folder / "hostapd.log"),
        started(*inside, "busybox", "udhcpd", "-f", dhcp, log=folder / "udhcpd.log"),
    ):
        yield


@contextmanager
def machine(folder: Path, network: Wifi) -> Iterator[Path]:
    """The appliance's side; gives its log."""
    RUN.mkdir(exist_ok=True)
    (RUN / "wifi.conf").write_bytes(wifi.configuration(network))
    programs = folder / "bin"
    programs.mkdir()
    (programs / "udhcpc").symlink_to("/bin/busybox")
    log = folder / "wifi.log"
    with started(SCRIPT, log=log, path=str(programs)):
        yield log
    os.kill(int((RUN / "wifi.pid").read_text()), 15)
    run("ip -4 address flush dev wlan0")


def until(what: object, folder: Path) -> None:
    assert callable(what)
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > deadline:
            logs = [f"-- {path.name}\n{path.read_text()}" for path in folder.glob("*.log")]
            pytest.fail("\n".join(logs))
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("network", "security"),
    [
        (Wifi("Our network", SECRET, "DE"), WPA2.format(secret=SECRET)),
        (Wifi("Café 猫", SECRET), WPA3.format(secret=SECRET)),
        (Wifi("Guests", ""), ""),
    ],
    ids=["wpa2", "wpa3", "open"],
)
def test_it_connects_and_has_an_address(
    radios: None, tmp_path: Path, network: Wifi, security: str
) -> None:
    with router(tmp_path, network.network, security), machine(tmp_path, network) as log:
        until(lambda: "inet 10.5.0." in run("ip -o -4 address show dev wlan0"), tmp_path)
        assert wifi.fault(log.read_text()) == ""
        print(log.read_text(), file=sys.stderr)


def test_a_wrong_password_is_told(radios: None, tmp_path: Path) -> None:
    wrong = Wifi("Ours", "another secret")
    with router(tmp_path, "Ours", WPA2.format(secret=SECRET)), machine(tmp_path, wrong) as log:
        until(lambda: "password is wrong" in (wifi.fault(log.read_text()) or ""), tmp_path)


def test_a_network_that_is_not_there_is_told(radios: None, tmp_path: Path) -> None:
    with machine(tmp_path, Wifi("Nowhere", "long secret")) as log:
        until(lambda: wifi.fault(log.read_text()) == "it is not in reach", tmp_path)
