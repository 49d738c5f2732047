"""What covey.toml becomes on the machine: small files that the services read. A core."""

from __future__ import annotations

import shlex
from urllib.parse import quote

import msgspec

from agent.membership import naming
from image.node import wifi
from image.node.settings import Proxy, Settings, StaticAddress

HOSTNAME, NETWORK, WISH, NOTES = "hostname", "network", "wish", "notes"
SSH_KEYS, PROXY, WIFI, LACKS = "ssh_keys", "proxy", "wifi.conf", "lacks"


def of(settings: Settings, mac: str) -> dict[str, bytes]:
    """Return the files by their names; `mac` (six bytes in hex with colons) names the nameless.

    `hostname` has a line, `network` and `proxy` words for a shell, `ssh_keys` a key a line, and
    `lacks` what is needed for a setting and is not there. `wish` is what the agent joins with,
    which is a secret, as `proxy` and `wifi.conf`. What is not set is empty.
    """
    name = settings.name or naming.name_from_hostname(f"covey-{mac.replace(':', '')[-6:]}")
    wish = b""
    if settings.ticket:
        wish = msgspec.json.encode({"ticket": settings.ticket, "name": name}) + b"\n"
    return {
        HOSTNAME: name.encode() + b"\n",
        NETWORK: _network(settings.address).encode(),
        WISH: wish,
        SSH_KEYS: "".join(f"{key}\n" for key in settings.ssh_keys).encode(),
        PROXY: _proxy(settings.proxy).encode(),
        WIFI: wifi.configuration(settings.wifi),
        LACKS: "".join(f"{line}\n" for line in _lacks(settings)).encode(),
    }


def _proxy(proxy: Proxy | None) -> str:
    """Return the proxy as what programs read from their environment; "" for none."""
    if proxy is None:
        return ""
    scheme, _, place = proxy.url.partition("://")
    user = quote(proxy.user, safe="")
    if proxy.password is not None:
        user += f":{quote(proxy.password, safe='')}"
    url = f"{scheme}://{user}@{place}" if user else proxy.url
    words = {"https_proxy": url, "http_proxy": url, "no_proxy": "localhost,127.0.0.1,::1"}
    return "".join(f"export {key}={shlex.quote(value)}\n" for key, value in words.items())


def _lacks(settings: Settings) -> list[str]:
    """Return what is missing of settings that are right, since passwords are kept elsewhere."""
    own, proxy, found = settings.wifi, settings.proxy, []
    if own and own.password is None:
        found.append(
            'covey.toml: wifi has no password here. Write wifi_password ("" for an open network).'
        )
    if proxy and proxy.user and proxy.password is None:
        found.append("covey.toml: proxy_user has no password here. Write proxy_password.")
    return found


def _network(own: StaticAddress | None) -> str:
    """Return the address by hand as assignments of /usr/lib/covey/network; "" for DHCP."""
    if own is None:
        return ""
    words = {
        "ADDRESS": str(own.address),
        "GATEWAY": str(own.gateway or ""),
        "DNS": " ".join(map(str, own.dns)),
        "INTERFACE": own.interface,
    }
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in words.items())
