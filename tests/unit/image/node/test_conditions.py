"""Lines on the machine itself, from the files of services and the kernel's sensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.node import conditions


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


def sensors(tmp_path: Path, **values: str) -> Path:
    for number, (place, value) in enumerate(values.items()):
        folder = tmp_path / "class" / place / f"{place}{number}"
        folder.mkdir(parents=True)
        (folder / ("temp" if place == "thermal_zone" else "temp1_input")).write_text(value)
    (tmp_path / "class/thermal").mkdir(parents=True)
    for zone in (tmp_path / "class").glob("thermal_zone/*"):
        (tmp_path / "class/thermal" / zone.name).symlink_to(zone)
    return tmp_path


def test_nothing_is_known_of_a_machine_without_sensors(run: Path, tmp_path: Path) -> None:
    assert conditions.lines(run, tmp_path) == conditions.faults(run, tmp_path) == []


def test_the_hottest_sensor_that_makes_sense(run: Path, tmp_path: Path) -> None:
    sys = sensors(tmp_path, thermal_zone="41000\n", hwmon="54400\n")
    assert conditions.lines(run, sys) == ["Temperature: 54 °C"]
    assert conditions.faults(run, sys) == []
    (sys / "class/thermal/thermal_zone0/temp").write_text("-273200\n")
    (sys / "class/hwmon/hwmon1/temp1_input").write_text("255000\n")
    assert conditions.lines(run, sys) == []
    (sys / "class/hwmon/hwmon1/temp1_input").write_text("97000\n")
    assert conditions.faults(run, sys)[0].startswith("It is hot: 97 °C. ")


def test_wifi_and_ssh(run: Path, tmp_path: Path) -> None:
    (run / "wifi.conf").write_text("network={}\n")
    assert conditions.lines(run, tmp_path) == ["Wifi: connecting"]
    (run / "wifi.log").write_text("CTRL-EVENT-NETWORK-NOT-FOUND\n")
    assert conditions.lines(run, tmp_path) == ["Wifi: not connected, it is not in reach"]
    (run / "wifi.log").write_text("CTRL-EVENT-CONNECTED\n")
    (run / "ssh_keys").write_text("ssh-ed25519 AAAA me\n")
    (run / "ssh_host").write_text("SHA256:abc\n")
    assert conditions.lines(run, tmp_path) == [
        "Wifi: connected",
        "ssh: root, with covey.toml's keys; this machine's is SHA256:abc",
    ]


def test_what_a_setting_lacks(run: Path, tmp_path: Path) -> None:
    (run / "lacks").write_text("covey.toml: wifi has no password here.\n")
    assert conditions.faults(run, tmp_path) == ["covey.toml: wifi has no password here."]
