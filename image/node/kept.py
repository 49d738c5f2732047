"""The passwords that left covey.toml after joining, on the machine's own disk. A core."""

from __future__ import annotations

import msgspec

from agent.errors import StateError
from agent.unreadable import UNREADABLE
from image.node.settings import Proxy, Settings, Wifi


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wifi: tuple[str, str] | None = None  # network, password
    proxy: tuple[str, str, str] | None = None  # URL, user, password


def encode(settings: Settings) -> bytes:
    """Return the file with the passwords of these settings."""
    wifi, proxy = settings.wifi, settings.proxy
    return msgspec.json.encode(
        _Kept(
            (wifi.network, wifi.password) if wifi and wifi.password is not None else None,
            (proxy.url, proxy.user, proxy.password) if proxy and proxy.password else None,
        )
    )


def decode(raw: bytes) -> Settings:
    """Return settings with the passwords of the file, for `Settings.with_kept`; none for b"".

    Raises StateError for a file that is damaged.
    """
    if not raw:
        return Settings()
    try:
        kept = msgspec.json.decode(raw, type=_Kept)
    except UNREADABLE:
        raise StateError(
            "the file of the wifi's and the proxy's passwords is damaged",
            hint="Write them in covey.toml again.",
        ) from None
    return Settings(
        wifi=Wifi(*kept.wifi) if kept.wifi else None,
        proxy=Proxy(*kept.proxy) if kept.proxy else None,
    )
