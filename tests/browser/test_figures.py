"""The page's own sums: numbers for people, streams cut into events, speeds, days."""

from __future__ import annotations

from typing import Any

import pytest


def run(page: Any, module: str, call: str) -> Any:
    return page.evaluate(f"import('/dashboard/files/{module}.js').then((m) => {call})")


CASES = [
    ("span(0.0124)", "12 ms"), ("span(1.239)", "1.24 s"), ("span(150)", "3 min"),
    ("span(7200)", "2.0 h"), ("span(345600)", "4 d"), ("span(null)", "–"),
    ("ago(3.4)", "3 s ago"), ("millis(3.14)", "3.1 ms"), ("millis(31.4)", "31 ms"),
    ("size(4693664)", "4.48 MiB"), ("size(500)", "500 B"), ("rate(1452)", "1.5 kB/s"),
    ("rate(277)", "277 B/s"), ("tokensPerS(22.54)", "22.5 tokens/s"),
    ("tokensPerS(930.4)", "930 tokens/s"), ("parameters(8.03e9)", "8.0 B"),
    ("plural(1, 'node')", "1 node"), ("plural(1200, 'node')", "1,200 nodes"),
]  # fmt: skip


@pytest.fixture
def page(opened: Any) -> Any:
    return opened.page()


def test_numbers_are_for_people(page: Any) -> None:
    found = {call: run(page, "format", f"m.{call}") for call, _ in CASES}
    assert found == dict(CASES)


def test_a_stream_is_cut_into_events_wherever_it_is_torn(page: Any) -> None:
    pieces = [
        "da",
        'ta: {"a":1}\r',
        "\n\r\n: a comment\ndata: two\n\nda",
        "ta: ü",
        "x\n\ndata: end",
    ]
    found = page.evaluate(
        """async (pieces) => {
          const { events } = await import('/dashboard/files/chat.js');
          const body = new ReadableStream({ start(control) {
            const bytes = new TextEncoder();
            for (const piece of pieces) control.enqueue(bytes.encode(piece));
            control.close();
          } });
          const found = [];
          for await (const event of events(body)) found.push(event);
          return found;
        }""",
        pieces,
    )
    assert found == ['{"a":1}', "two", "üx", "end"]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"first": 250, "last": 1250, "tokens": 21, "exact": True, "replica": "alpha"},
         "first token after 250 ms · 20.0 tokens/s · 21 tokens · by alpha"),
        ({"first": 250, "last": 1250, "tokens": 3, "exact": False, "replica": ""},
         "first token after 250 ms · 2.0 tokens/s · about 3 tokens"),
        ({"first": 250, "last": 250, "tokens": 1, "exact": True, "replica": ""},
         "first token after 250 ms · 1 token"),
        ({"first": None, "last": 0, "tokens": 0, "exact": False, "replica": ""}, ""),
    ],
)  # fmt: skip
def test_speed_is_that_of_the_tokens_after_the_first(page: Any, seen: Any, said: str) -> None:
    found = page.evaluate(
        "(seen) => import('/dashboard/files/chat.js').then((m) => m.figures({begun: 0, ...seen}))",
        seen,
    )
    assert found == said


def test_days_without_use_are_there(page: Any) -> None:
    rows = [{"day": "2030-01-30", "prompt_tokens": 2, "completion_tokens": 3},
            {"day": "2030-01-30", "prompt_tokens": 1, "completion_tokens": 0},
            {"day": "2029-01-30", "prompt_tokens": 9, "completion_tokens": 9}]  # fmt: skip
    found = page.evaluate(
        "(rows) => import('/dashboard/files/usage.js')"
        ".then((m) => m.byDay(rows, 3, Date.parse('2030-01-31T12:00Z')))",
        rows,
    )
    assert found == [["2030-01-29", 0], ["2030-01-30", 6], ["2030-01-31", 0]]
