"""Where keys are required, and which gateways do not start."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.errors import UsageFault
from gateway.keys.database import open_database
from gateway.keys.key import Key
from gateway.keys.start import check, keys_required
from gateway.keys.store import Store

NOW = 1_900_000_000.0
Bound = Callable[[str], socket.socket]


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bound]:
    sockets: list[socket.socket] = []

    def make(host: str) -> socket.socket:
        if host == "unix":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(str(tmp_path / "g.sock"))
        else:
            sockets.append(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            sockets[-1].bind((host, 0))
        return sockets[-1]

    yield make
    for sock in sockets:
        sock.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(open_database(str(tmp_path / "keys.db")))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("host", "required"),
    [("127.0.0.1", False), ("127.9.9.9", False), ("::1", False), ("unix", False),
     ("0.0.0.0", True), ("::", True)],
)  # fmt: skip
def test_where_keys_are_required(bound: Bound, host: str, required: bool) -> None:
    sock = bound(host)
    assert keys_required(Config(), [sock]) is required
    assert keys_required(Config(require_keys=True), [sock]) is True
    assert keys_required(Config(require_keys=False), [sock]) is False
    assert keys_required(Config(), [bound("127.0.0.1"), sock]) is required


@pytest.mark.parametrize("require", [None, True])
def test_an_open_gateway_without_a_key_does_not_start(
    bound: Bound, store: Store, require: bool | None
) -> None:
    sock = bound("0.0.0.0")
    config = Config(require_keys=require)
    with pytest.raises(UsageFault, match=rf"0.0.0.0:{sock.getsockname()[1]} can be reached by"):
        check(config, [sock], store, NOW)
    assert not store.there()
    store.create(Key("k1", "old", expires=NOW - 1), "h1")
    with pytest.raises(UsageFault, match="has no key that is valid"):
        check(config, [sock], store, NOW)
    store.create(Key("k2", "new"), "h2")
    check(config, [sock], store, NOW)
    store.revoke("new", NOW)
    with pytest.raises(UsageFault) as caught:
        check(config, [sock], store, NOW)
    assert "gateway keys create NAME" in caught.value.hint


def test_without_keys_if_that_is_said(
    bound: Bound, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    check(Config(require_keys=False), [bound("0.0.0.0")], store, NOW)
    assert "no key is required" in caplog.text


def test_on_the_loopback_it_starts(
    bound: Bound, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    check(Config(), [bound("127.0.0.1")], store, NOW)
    assert not caplog.records
    check(Config(require_keys=True), [bound("127.0.0.1")], store, NOW)
    assert "keys are required, and" in caplog.text


def test_a_store_that_is_away_may_have_keys(
    bound: Bound, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(Config(), [bound("0.0.0.0")], Store(open_database(str(tmp_path))), NOW)
    assert "whether there is a key is not known" in caplog.text
