"""wpa_supplicant's file, and what its log says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from image.node.settings import Wifi
from image.node.wifi import configuration, fault

SUPPLICANT = shutil.which("wpa_supplicant", path="/usr/sbin:/sbin") or ""


def test_a_network_with_a_passphrase() -> None:
    assert configuration(Wifi("Our network", 'a "b" # c\\', "DE")).decode() == (
        "ctrl_interface=/run/wpa_supplicant\n"
        "update_config=0\n"
        "country=DE\n"
        "network={\n"
        "\tssid=4f7572206e6574776f726b\n"
        "\tscan_ssid=1\n"
        "\tkey_mgmt=SAE WPA-PSK WPA-PSK-SHA256\n"
        '\tpsk="a "b" # c\\"\n'
        "\tieee80211w=1\n"
        "}\n"
    )


def test_a_key_an_open_network_and_none() -> None:
    key = configuration(Wifi("猫", "Ab" * 32)).decode()
    assert f"\tpsk={'Ab' * 32}\n" in key and "SAE" not in key and "\tssid=e78cab\n" in key
    assert "\tkey_mgmt=NONE\n" in configuration(Wifi("Café", "")).decode()
    assert configuration(None) == configuration(Wifi("Ours", None)) == b""


@pytest.mark.parametrize("name", ["a\n}", "}\nnetwork={", "=\t#"])
def test_a_name_cannot_say_more_than_itself(name: str) -> None:
    assert configuration(Wifi(name, "long secret")).count(b"\n") == 9


@pytest.mark.skipif(not SUPPLICANT, reason="wpa_supplicant is not installed")
@pytest.mark.parametrize(
    "network",
    [
        Wifi("Our network", 'a "long" # secret\\', "DE"), Wifi("Café 猫", "Ab" * 32),
        Wifi("Guests", ""), Wifi("x", '"' * 63),
    ],
)  # fmt: skip
def test_wpa_supplicant_takes_it(tmp_path: Path, network: Wifi) -> None:
    file = tmp_path / "wifi.conf"
    right = configuration(network)
    for raw, said in ((right, False), (right.replace(b"ssid=", b"sid=", 1), True)):
        file.write_bytes(raw)
        # It reads the file first, and then ends, for there is no such port.
        done = subprocess.run(
            [SUPPLICANT, "-D", "nl80211", "-i", "covey-none0", "-c", file],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert ("Failed to read or parse configuration" in done.stdout) == said, done.stdout
        assert "Successfully initialized wpa_supplicant" in done.stdout


def test_what_the_log_says_last_counts() -> None:
    connected = "wlan0: CTRL-EVENT-CONNECTED - Connection to 02:00 completed [id=0 id_str=]\n"
    wrong = 'wlan0: CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="Ours" reason=WRONG_KEY\n'
    assert fault("Successfully initialized wpa_supplicant\n") is None
    assert fault(wrong + connected) == ""
    assert fault(connected + wrong) == "the password is wrong, or its router refuses this machine"
    assert fault(f"{connected}wlan0: CTRL-EVENT-NETWORK-NOT-FOUND\n") == "it is not in reach"
    assert fault("covey: no port\n") == (
        "this machine has no wifi port that works (most need firmware)"
    )
