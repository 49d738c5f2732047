"""What wpa_supplicant is told of covey.toml's wifi network, and what its log says of it. A core."""

from __future__ import annotations

import re

from image.node.settings import Wifi

# A key that was computed already; a passphrase has 63 characters at most.
_KEY = re.compile(r"[0-9A-Fa-f]{64}")
# What the log says last counts, by the words of wpa_supplicant 2.10.
_EVENTS = (
    ("CTRL-EVENT-CONNECTED", ""),
    ("reason=WRONG_KEY", "the password is wrong, or its router refuses this machine"),
    ("CTRL-EVENT-AUTH-REJECT", "its router refuses this machine"),
    ("CTRL-EVENT-ASSOC-REJECT", "its router refuses this machine"),
    ("CTRL-EVENT-NETWORK-NOT-FOUND", "it is not in reach"),
    ("CTRL-EVENT-DISCONNECTED", "the connection was lost"),
    ("covey: no port", "this machine has no wifi port that works (most need firmware)"),
)


def configuration(wifi: Wifi | None) -> bytes:
    """Return wpa_supplicant's file; b"" for no wifi, or a network whose password is not known."""
    if wifi is None or wifi.password is None:
        return b""
    lines = ["ctrl_interface=/run/wpa_supplicant", "update_config=0"]
    if wifi.country:
        lines.append(f"country={wifi.country}")
    # In hex, a name is what it is, whatever characters it has. A hidden one is asked for.
    lines += ["network={", f"\tssid={wifi.network.encode().hex()}", "\tscan_ssid=1"]
    if not wifi.password:
        lines.append("\tkey_mgmt=NONE")
    elif _KEY.fullmatch(wifi.password):
        lines += ["\tkey_mgmt=WPA-PSK WPA-PSK-SHA256", f"\tpsk={wifi.password}", "\tieee80211w=1"]
    else:
        # WPA3 where the router has it, or WPA2; quotes inside are the password's.
        lines += ["\tkey_mgmt=SAE WPA-PSK WPA-PSK-SHA256", f'\tpsk="{wifi.password}"']
        lines.append("\tieee80211w=1")
    return "".join(f"{line}\n" for line in [*lines, "}"]).encode()


def fault(log: str) -> str | None:
    """Return why there is no connection, by wpa_supplicant's log; "" with one, None if unknown."""
    for line in reversed(log.splitlines()):
        for word, why in _EVENTS:
            if word in line:
                return why
    return None
