"""Addresses, replicas, the file and who overrides whom."""

from __future__ import annotations

import pytest

from gateway.config import (
    Config,
    check_replica,
    load,
    parse_listen,
    parse_replicas,
    reloaded,
    share,
)
from gateway.errors import UsageFault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8088", ("127.0.0.1", 8088)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_listen(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8088", ":8088", "::1:8088", "a:b", "a:65536", "a:-1", "[::1]"]
)
def test_listen_that_is_no_address(text: str) -> None:
    with pytest.raises(UsageFault, match="no address to listen on"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://[fd00::1]:80/", "http://[fd00::1]:80"),
        ("https://host/openai/v1/", "https://host/openai"),
        ("http://host/v1", "http://host"),
    ],
)
def test_replica_urls(url: str, base: str) -> None:
    assert check_replica("x", url) == base


@pytest.mark.parametrize(
    "text",
    ["x", "=http://h", "a b=http://h", "x=", "x=h:80", "x=ftp://h", "x=http://", "x=http://h:99999",
     "x=http://h:0", "x=http://u:p@h", "x=http://h?q", "x=http://h#f", "x=http://[::1",
     "x=http://h/a b", "-x=http://h", "é=http://h", f"{'n' * 64}=http://h"],
)  # fmt: skip
def test_replicas_that_are_none(text: str) -> None:
    with pytest.raises(UsageFault):
        parse_replicas([text])


def test_two_replicas_need_two_names_and_two_urls() -> None:
    with pytest.raises(UsageFault, match="two replicas are named a"):
        parse_replicas(["a=http://h", "a=http://i"])
    with pytest.raises(UsageFault, match="a and b have the same URL"):
        load("", "f", {"replicas": parse_replicas(["a=http://h", "b=http://h/v1"])})


def test_those_that_see_are_replicas_and_add_up() -> None:
    text = 'vision = ["a"]\n[replicas]\na = "http://h"\n'
    config = load(text, "f", {"replicas": {"b": "http://i"}, "vision": ("b",)})
    assert config.vision == ("a", "b")
    assert reloaded(load("", "f", {}), config)[1] == ["replicas", "vision"]
    with pytest.raises(UsageFault, match="'c' is said to see, but no replica is named so"):
        load(text, "f", {"vision": ("c",)})


def test_flags_win_over_the_file_and_replicas_add_up() -> None:
    text = 'listen = "[::1]:1"\nstrategy = "round_robin"\n[replicas]\na = "http://h/v1"\n'
    config = load(text, "f", {"listen": "h:2", "strategy": None, "replicas": {"b": "http://i"}})
    assert config == Config(
        listen="h:2",
        strategy="round_robin",
        replicas={"a": "http://h", "b": "http://i"},
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("listen = ", "g.toml is not valid TOML"),
        ("drain_s = " + "9" * 5000, "g.toml is not valid TOML"),
        ("x = " + "[" * 20000, "g.toml is not valid TOML: nested too deep"),
        ("lisen = 'h:1'", "unknown field `lisen`"),
        ("strategy = 'best'", "strategy"),
        ("drain_s = -1", "drain_s"),
        ("tls_key = 'k.pem'", "tls_cert and tls_key belong together"),
        ("max_body_bytes = 0", "max_body_bytes"),
        ("require_keys = 'yes'", "require_keys"),
        ("access_log_prompts = 'yes'", "access_log_prompts"),
        ("otlp_endpoint = 'collector:4318'", "otlp_endpoint 'collector:4318' is no http"),
        ("otlp_endpoint = 'http://[::1'", "otlp_endpoint"),
        ("otlp_endpoint = 'http://h?q'", "otlp_endpoint"),
        ("listen = 'x'", "no address"),
        ("workers = 0", "workers"),
        ("workers = 300", "300 workers cannot share per_replica = 256"),
        ("workers = 4\nmax_requests = 3", "4 workers cannot share max_requests = 3"),
        ("[replicas]\na = 'x'", "replica a"),
    ],
)
def test_a_bad_file_names_what_is_bad(text: str, reason: str) -> None:
    with pytest.raises(UsageFault, match=reason):
        load(text, "g.toml", {})


def test_what_a_reload_takes_and_what_needs_a_restart() -> None:
    old = load("", "f", {"listen": "h:1"})
    text = "wait_s = 1.0\ndrain_s = 1.0\nstrategy = 'round_robin'\nmax_requests = 7"
    new = load(text, "f", {"listen": "h:2"})
    config, taken, fixed = reloaded(old, new)
    assert (taken, fixed) == (["strategy", "wait_s", "max_requests"], ["listen", "drain_s"])
    assert config == Config(listen="h:1", strategy="round_robin", wait_s=1.0, max_requests=7)
    assert reloaded(new, new) == (new, [], [])


def test_tls_is_not_begun_or_ended_by_a_reload_but_its_files_may_move() -> None:
    plain = load("", "f", {})
    one = load("tls_cert = 'c'\ntls_key = 'k'", "f", {})
    two = load("tls_cert = 'd'\ntls_key = 'k'", "f", {})
    assert reloaded(plain, one) == (plain, [], ["tls_cert", "tls_key"])
    assert reloaded(one, plain)[1:] == ([], ["tls_cert", "tls_key"])
    assert reloaded(one, two) == (two, ["tls_cert"], [])


def test_workers_share_what_is_bounded_and_one_has_it_all() -> None:
    text = "workers = 3\nper_replica = 8\nqueue = 2\nmax_requests = 0"
    config = load(text, "f", {})
    shares = [share(config, worker) for worker in (1, 2, 3)]
    assert [each.per_replica for each in shares] == [3, 3, 2]
    assert [each.queue for each in shares] == [1, 1, 0]
    assert [each.max_requests for each in shares] == [0, 0, 0]  # any number
    alone = load("per_replica = 8", "f", {})
    assert share(alone, 1) == alone
