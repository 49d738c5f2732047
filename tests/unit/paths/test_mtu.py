"""The MTU search against paths of every width, black holes and loss."""

import random

import pytest

from agent.paths.mtu import (
    FLOW_VERIFY_S,
    MTU_MIN,
    SEARCH_S,
    STEPS_IPV4,
    STEPS_IPV6,
    TRIES,
    TRY_INTERVAL_S,
    VERIFY_S,
    WIREGUARD_BYTES,
    MtuSearch,
)


class Pipe:
    """A path that carries tunnel packets up to `width`, and loses some."""

    def __init__(self, width: int, *, loss: float = 0.0, ipv6: bool = False) -> None:
        self.rng = random.Random(1)
        self.search = MtuSearch(random.Random(2))
        self.width, self.loss, self.now = width, loss, 0.0
        self.sent = 0
        self.answering = True
        self.search.restart(ipv6, 0.0)

    def run(self, for_s: float) -> None:
        end = self.now + for_s
        while self.search.wake_at <= end:
            self.now = max(self.now, self.search.wake_at)
            for probe in self.search.due(self.now, answering=self.answering):
                self.sent += 1
                if probe.size - WIREGUARD_BYTES <= self.width and self.rng.random() >= self.loss:
                    self.search.arrived(probe.token, probe.size, self.now + 0.05)
        self.now = end


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("width", [1280, 1300, 1379, 1380, 1399, 1419, 1420, 1431, 1440, 9000])
def test_the_largest_step_that_fits_is_found(width: int, ipv6: bool) -> None:
    pipe = Pipe(width, ipv6=ipv6)
    pipe.run(8.0)
    steps = STEPS_IPV6 if ipv6 else STEPS_IPV4
    assert pipe.search.mtu == max(step for step in steps if step <= width)
    assert not pipe.search.fragmented
    assert pipe.sent <= 24


def test_an_ordinary_path_takes_one_probe() -> None:
    pipe = Pipe(1440)
    pipe.run(1.0)
    assert (pipe.search.mtu, pipe.sent) == (1440, 1)


def test_a_path_narrower_than_ipv6_allows_is_said_to_be_so() -> None:
    pipe = Pipe(544)
    pipe.run(10.0)
    assert pipe.search.mtu == MTU_MIN
    assert pipe.search.fragmented
    pipe.width = 1440
    pipe.run(SEARCH_S + 10)
    assert (pipe.search.mtu, pipe.search.fragmented) == (1440, False)


def test_a_black_hole_is_noticed_and_searched_anew() -> None:
    pipe = Pipe(1440)
    pipe.run(5.0)
    pipe.width = 1380
    pipe.run(VERIFY_S + 6.0)
    assert pipe.search.mtu == 1380


def test_while_packets_flow_a_black_hole_is_noticed_within_seconds() -> None:
    pipe = Pipe(1440)
    pipe.run(20.0)
    pipe.width = 1380
    pipe.search.flows(pipe.now)
    pipe.run(TRIES * TRY_INTERVAL_S + 0.1)
    assert pipe.search.mtu == 1380, "what was held for long is tried at once"
    pipe.run(5.0)
    sent = pipe.sent
    for _ in range(120):  # a minute of traffic, looked at twice a second
        pipe.search.flows(pipe.now)
        pipe.run(0.5)
    assert 10 <= pipe.sent - sent <= 60 / FLOW_VERIFY_S + 1
    pipe.search.stop()
    pipe.search.flows(pipe.now)
    sent = pipe.sent
    pipe.run(20.0)
    assert pipe.sent == sent, "there is no path"


def test_a_path_that_became_wider_is_found_later() -> None:
    pipe = Pipe(1400)
    pipe.run(60.0)
    assert pipe.search.mtu == 1400
    pipe.width = 1440
    pipe.run(SEARCH_S)
    assert pipe.search.mtu == 1440


def test_silence_of_the_whole_path_is_no_verdict_on_its_width() -> None:
    pipe = Pipe(1440)
    pipe.run(5.0)
    pipe.answering, pipe.width = False, 0
    pipe.run(120.0)
    assert pipe.search.mtu == 1440
    pipe.answering, pipe.width = True, 1440
    pipe.run(60.0)
    assert pipe.search.mtu == 1440


def test_loss_alone_makes_no_path_narrow_for_long() -> None:
    pipe = Pipe(1440, loss=0.36)
    held = 0
    for _ in range(200):
        pipe.run(30.0)
        held += pipe.search.mtu == 1440
    assert held >= 120


def test_an_answer_of_another_size_or_token_counts_for_nothing() -> None:
    search = MtuSearch(random.Random(1))
    search.restart(False, 0.0)
    (probe,) = search.due(0.0, answering=True)
    search.arrived(probe.token, probe.size - 8, 0.1)
    search.arrived(probe.token ^ 1, probe.size, 0.1)
    assert search.mtu == MTU_MIN
    search.arrived(probe.token, probe.size, 0.1)
    assert search.mtu == 1440


def test_a_stopped_search_is_silent() -> None:
    search = MtuSearch(random.Random(1))
    search.restart(False, 0.0)
    search.stop()
    assert search.wake_at == float("inf")
    assert list(search.due(1e9, answering=True)) == []
