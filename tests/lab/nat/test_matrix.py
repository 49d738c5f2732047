"""The matrix with the plainest way to connect: a datagram to each address that the other has."""

from __future__ import annotations

import os
import socket
import time
from html.parser import HTMLParser

import pytest
from matrix import Cell, End, Matrix, Result, Route, page, text
from nat_sockets import come, send, udp

PORT = 51900
ANSWER_S = 0.1


def plain(starter: End, other: End) -> Result:
    """Send to all that is known of the other, without any punching; the first answer counts."""
    began = time.monotonic()
    ways = [
        (Route.LAN, socket.AF_INET, other.machine.address),
        (Route.IPV6, socket.AF_INET6, other.machine.address6),
        (Route.OPEN, socket.AF_INET, other.site.address),
    ]
    if other.machine.address == other.site.address:
        del ways[0]
    for route, family, address in ways:
        if not address or (family == socket.AF_INET6 and not starter.machine.address6):
            continue
        with (
            udp(starter.machine, family=family) as one,
            udp(other.machine, PORT, family) as two,
        ):
            question, answer = os.urandom(8), os.urandom(8)
            send(one, (address, PORT), question)
            asked = come(two, ANSWER_S)
            if asked is None or asked.data != question:
                continue
            send(two, asked.source, answer)
            answered = come(one, ANSWER_S)
            if answered is not None and answered.data == answer:
                taken = time.monotonic() - began
                return Result(route, taken, taken)
    return Result(Route.NONE, None, None, "no address answered")


def test_plain_datagrams_through_real_nats() -> None:
    kinds = ["public", "easy", "lan", "cgnat", "blocked", "ipv6"]
    with Matrix(kinds) as matrix:
        machines = {
            (starter, other): (one.machine.name, two.machine.name)
            for starter, other, one, two in matrix.pairs()
        }
        cells = list(matrix.run(plain))
        assert len(matrix.ends()) == 2 * len(kinds)
        assert [site.name for site in matrix.rendezvous] == ["r1", "r2"]
    got = {(cell.starter, cell.other): cell.result.route for cell in cells}
    assert len(cells) == len(got) == len(kinds) ** 2
    assert machines["public", "easy"] == ("public1", "easy2")
    assert machines["easy", "public"] == ("easy2", "public1"), "the same two, the other way"
    assert machines["lan", "lan"] == ("lan1", "lan2")
    expected = dict.fromkeys(got, Route.NONE)
    for starter in ("easy", "lan", "cgnat"):
        expected[starter, "public"] = Route.OPEN
    for starter in ("public", "ipv6"):
        expected[starter, "public"] = Route.IPV6
    expected["lan", "lan"] = Route.LAN
    assert got == expected
    for cell in cells:
        assert (cell.result.first_s is None) is (cell.result.route is Route.NONE)
    written = text(cells)
    assert "36 pairs: 1 lan, 2 ipv6, 3 open, 30 none" in written


@pytest.fixture
def two_kinds() -> list[Cell]:
    return [
        Cell("easy", "easy", Result(Route.PUNCHED, 0.031, 0.25)),
        Cell("easy", "hard", Result(Route.RELAYED, 0.2, None, 'no <hole> for "hard"')),
        Cell("hard", "easy", Result(Route.NONE, None, None)),
        Cell("hard", "hard", Result(Route.RELAYED, 1.5, None)),
    ]


def test_text(two_kinds: list[Cell]) -> None:
    assert text(two_kinds) == (
        "route (rows begin)  easy     hard\n"
        "easy                punched  relayed\n"
        "hard                none     relayed\n"
        "\n"
        "first packet / direct, s  easy       hard\n"
        "easy                      0.03/0.25  0.20/–\n"
        "hard                      –/–        1.50/–\n"
        "\n"
        'easy → hard: no <hole> for "hard"\n'
        "\n"
        "4 pairs: 1 punched, 2 relayed, 1 none; first packet: median 0.20 s, slowest 1.50 s; "
        "direct: median 0.25 s, slowest 0.25 s.\n"
    )


class _Table(HTMLParser):
    """The cells of a page: their text, class and note; and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str | None, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            known = dict(attrs)
            self.rows[-1].append(("", known.get("class"), known.get("title")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            shown, of_class, note = self.rows[-1][-1]
            self.rows[-1][-1] = (f"{shown} {data}".strip(), of_class, note)


def test_page(two_kinds: list[Cell]) -> None:
    table = _Table()
    table.feed(page(two_kinds, title="NATs <here>"))
    table.close()
    assert table.open == []
    assert table.rows == [
        [("", None, None), ("easy", None, None), ("hard", None, None)],
        [
            ("easy", None, None),
            ("punched 0.03/0.25", "punched", None),
            ("relayed 0.20/–", "relayed", 'no <hole> for "hard"'),
        ],
        [
            ("hard", None, None),
            ("none –/–", "none", None),
            ("relayed 1.50/–", "relayed", None),
        ],
    ]
    assert "<title>NATs &lt;here&gt;</title>" in page(two_kinds, title="NATs <here>")


def test_a_table_that_is_not_full_has_empty_cells(two_kinds: list[Cell]) -> None:
    table = _Table()
    table.feed(page(two_kinds[:2]))
    assert [len(row) for row in table.rows] == [3, 3, 3]
    assert table.rows[2][1:] == [("", None, None), ("", None, None)]
    assert text(two_kinds[:2]).splitlines()[2] == "hard"
