"""The sentences that name what went wrong at each address."""

from __future__ import annotations

import pytest

from agent.control.troubles import Trouble, unreachable

PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"


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
