"""Addresses as text, and the sentences that name what went wrong at them."""

from __future__ import annotations

import pytest

from agent.control.endpoints import Trouble, join_address, split_address, unreachable
from agent.errors import UsageError

PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:4001", "192.0.2.1", 4001),
        ("node.example:1", "node.example", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[::]:0", "::", 0),
    ],
)
def test_split_and_join(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":4001", "host:port", "host:65536", "::1:4001", "h:-1", "h:١"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        split_address(text)


def test_each_address_is_named_with_its_trouble() -> None:
    error = unreachable(
        PEER, {"a:1": Trouble.REFUSED, "b:2": Trouble.OTHER_NODE}, ["a:1", "b:2", "c:3"], 5.0
    )
    assert error.message == (
        "a:1 refused the connection; b:2 is another node; c:3 did not answer within 5 s "
        "(peer …tt6rPxc8)"
    )
    assert "same mesh" in error.hint


@pytest.mark.parametrize("trouble", list(Trouble))
def test_every_trouble_has_advice_in_one_line(trouble: Trouble) -> None:
    error = unreachable(PEER, {"a:1": trouble}, ["a:1"], 1.5)
    assert trouble.value in error.message
    assert error.hint.endswith(".")
    assert "\n" not in error.line()


def test_no_address_at_all() -> None:
    assert "no address is known" in unreachable(PEER, {}, [], 1.0).message
