"""covey.toml of the options is what the appliance reads; a mistake is told with its option."""

from __future__ import annotations

import pytest
from covey_toml import LINES, PROXY_PASSWORD, SSH_KEY, TICKET, WIFI_PASSWORD, file

from agent.errors import TicketError, UsageError
from image.flashing.filled import covey_toml, option
from image.node import settings

ALL = {
    "ticket": [TICKET], "name": ["shed-1"], "role": ["worker", "relay"],
    "tags": ["gpu", "site:home"], "ssh_key": [SSH_KEY], "wifi": ["Our network"],
    "wifi_password": [WIFI_PASSWORD], "wifi_country": ["DE"], "address": ["192.168.1.20/24"],
    "gateway": ["192.168.1.1"], "dns": ["9.9.9.9"], "interface": ["eth0"],
    "proxy": ["http://proxy.lan:3128"], "proxy_user": ["shed"], "proxy_password": [PROXY_PASSWORD],
}  # fmt: skip
NOW = 1_000_000.0


def test_all_options_say_what_the_file_by_hand_says() -> None:
    raw = covey_toml(ALL, NOW)
    assert settings.read(raw) == settings.read(file(*LINES))
    # What was not set can still be found in it.
    assert raw.startswith(b"# Covey reads this file") and b"\r\n" in raw


def test_no_option_leaves_the_images_own_file() -> None:
    assert covey_toml({}, NOW) == b""


@pytest.mark.parametrize("text", ['a "quoted" \\ name', "Grüße 猫", "'; reboot #"])
def test_whatever_a_network_is_called(text: str) -> None:
    found = settings.read(covey_toml({"wifi": [text], "wifi_password": [""]}, NOW)).settings
    assert found and found.wifi == settings.Wifi(text, "")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": ["Shed 1"]}, r"^--name: “Shed 1” cannot be a name$"),
        ({"tags": ["a b"]}, r"^--tag: "),
        ({"name": ["shed\udcff"]}, r"^--name: holds letters that"),
        ({"wifi": ["Ours"]}, r"^--wifi: the network's password is missing$"),
        ({"wifi": ["Ours"], "wifi_password": ["secret1"]}, r"^--wifi-password-file: cannot be"),
        ({"ticket": ["covey1oops"]}, r"^--ticket-file: "),
        ({"dns": ["9.9.9.9"]}, r"^--dns: means nothing without address$"),
    ],
)
def test_a_mistake_is_told_with_its_option(values: dict[str, list[str]], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        covey_toml(values, NOW)
    assert "secret1" not in caught.value.line() and "oops" not in caught.value.line()


def test_a_ticket_that_has_run_out() -> None:
    with pytest.raises(TicketError, match="expired"):
        covey_toml({"ticket": [TICKET]}, 3_000_000.0)


def test_secrets_have_options_that_take_files() -> None:
    named = {key: option(key) for key in ("ticket", "wifi_password", "ssh_key", "tags")}
    assert named == {
        "ticket": "--ticket-file", "wifi_password": "--wifi-password-file",
        "ssh_key": "--ssh-key", "tags": "--tag",
    }  # fmt: skip
