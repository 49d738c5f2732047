"""How the machine itself is, for the screen: temperature, wifi, ssh. A shell: it reads files."""

from __future__ import annotations

from pathlib import Path

from image.node import hostfiles, wifi

_SYS = Path("/sys")
# What sensors that are not there, or broken, say lies outside.
_PLAUSIBLE_C = (1.0, 150.0)
_HOT_C = 90.0
_WIFI = {None: "connecting", "": "connected"}


def lines(run: Path, sys: Path = _SYS) -> list[str]:
    """Return a line for each of what there is; `run` is the folder of the services' files."""
    found = []
    if (degrees := temperature(sys)) is not None:
        found.append(f"Temperature: {degrees:.0f} °C")
    if _text(run / hostfiles.WIFI):
        why = wifi.fault(_text(run / "wifi.log"))
        found.append(f"Wifi: {f'not connected, {why}' if why else _WIFI[why]}")
    if _text(run / hostfiles.SSH_KEYS):
        host = _text(run / "ssh_host").strip()
        found.append(f"ssh: root, with covey.toml's keys; this machine's is {host or 'not made'}")
    return found


def faults(run: Path, sys: Path = _SYS) -> list[str]:
    """Return what is wrong with it."""
    found = _text(run / hostfiles.LACKS).splitlines()
    degrees = temperature(sys)
    if degrees is not None and degrees >= _HOT_C:
        found.append(f"It is hot: {degrees:.0f} °C. Look for dust, and for air around it.")
    return found


def temperature(sys: Path) -> float | None:
    """Return the highest temperature that a sensor measures, in °C; None where there is none."""
    paths = [*sys.glob("class/thermal/thermal_zone*/temp"), *sys.glob("class/hwmon/*/temp*_input")]
    read = [_text(path).strip() for path in paths]
    found = [int(text) / 1000 for text in read if text.isdecimal()]
    least, most = _PLAUSIBLE_C
    return max((degrees for degrees in found if least < degrees < most), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
