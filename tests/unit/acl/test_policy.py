"""The policy file: what it may hold, and where a mistake in it is."""

from __future__ import annotations

from ipaddress import IPv4Network

import acl_worlds as worlds
import pytest

from agent.acl.policy import MAX_FILE_BYTES, MAX_RULES, Policy, Selector, Subject, parse, words
from agent.errors import ConfigError

GOOD = """\
# Who may reach what.
[[rule]]
from = ["tag:ops", "name:laptop", "role:admin"]
to = ["tag:gpu"]
ports = ["tcp:22", "tcp:8000-8010", "udp:53", "icmp"]
action = "allow"

  [[ rule ]]   # the second
from = "*"
to = ["*"]
ports = "*"
action = "deny"
"""


def wrong(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "/etc/covey/acl.toml")
    assert caught.value.message.startswith("/etc/covey/acl.toml")
    assert caught.value.hint
    return caught.value


def rule(**fields: str) -> str:
    whole = {"from": '"*"', "to": '"*"', "ports": '"*"', "action": '"allow"'} | {
        name.rstrip("_"): value for name, value in fields.items()
    }
    return "[[rule]]\n" + "".join(f"{k} = {v}\n" for k, v in whole.items() if v)


def test_a_policy_is_read_whole() -> None:
    first, second = parse(GOOD.encode(), "acl.toml").rules
    assert (first.number, first.line, first.action) == (1, 2, "allow")
    assert words(first.sources) == ["tag:ops", "name:laptop", "role:admin"]
    assert words(first.destinations) == ["tag:gpu"]
    assert words(first.ports) == ["tcp:22", "tcp:8000-8010", "udp:53", "icmp"]
    assert (second.number, second.line, second.action) == (2, 8, "deny")
    assert words(second.sources) == words(second.destinations) == words(second.ports) == ["*"]


def test_line_endings_of_windows() -> None:
    assert [r.line for r in parse(GOOD.replace("\n", "\r\n").encode(), "f").rules] == [2, 8]


def test_an_empty_file_has_no_rules() -> None:
    assert parse(b"", "acl.toml") == Policy("acl.toml", ())


def test_rules_in_a_list_have_no_lines() -> None:
    text = 'rule = [{from = "*", to = "*", ports = "*", action = "deny"}]\n# [[rule]]\n'
    (only,) = parse(text.encode(), "f").rules
    assert only.line is None
    bad = wrong(text.replace("deny", "drop"))
    assert bad.message == "/etc/covey/acl.toml, rule 1, action is 'drop'"


def test_a_rule_is_the_same_wherever_it_stands() -> None:
    assert parse(GOOD.encode(), "f") == parse(f"\n\n{GOOD}".encode(), "f")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"from_": ""}, "from is missing"),
        ({"action": ""}, "action is missing"),
        ({"action": '"accept"'}, "action is 'accept'"),
        ({"action": "true"}, "action is True"),
        ({"from_": '"tag:gpu"'}, "from is 'tag:gpu', which is neither a list nor \"*\""),
        ({"from_": "[]"}, "from is empty"),
        ({"to": "[7]"}, "to is [7], which is neither"),
        ({"to": '["gpu"]'}, "to: 'gpu' names nobody"),
        ({"to": '["tag:"]'}, "to: '' cannot be a tag"),
        ({"to": '["tag:GPU"]'}, "to: 'GPU' cannot be a tag"),
        ({"to": '["name:-x"]'}, "to: '-x' cannot be a name"),
        ({"to": '["role:boss"]'}, "to: 'boss' is not a role"),
        ({"ports": "[22]"}, "ports is [22], which is neither"),
        ({"ports": '["22"]'}, "ports: '22' names no port"),
        ({"ports": '["tcp:10-9"]'}, "ports: 'tcp:10-9' holds no port"),
        ({"port": '["tcp:22"]'}, "port is no field of a rule"),
    ],
)
def test_a_mistake_is_told_with_its_place(fields: dict[str, str], said: str) -> None:
    fault = wrong(rule() + rule(**fields))
    assert fault.message.startswith("/etc/covey/acl.toml, rule 2 (line 6), ")
    assert said in fault.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]\n", "is not valid TOML: Expected"),
        ("x = 1\n[[rule]]\n", "'x' is nothing that it may hold"),
        ("[[rules]]\n", "'rules' is nothing that it may hold"),
        ("[rule]\nfrom = 1\n", "rule is no list of rules"),
        ("rule = [1]\n", "rule is no list of rules"),
        ("rule = " + "[" * 20000, "is not valid TOML"),
        ("rule = " + "9" * 5000, "is not valid TOML: Exceeds the limit"),
        (rule() * (MAX_RULES + 1), f"has {MAX_RULES + 1} rules"),
        ("#" * (MAX_FILE_BYTES + 1), f"has more than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_policy(text: str, said: str) -> None:
    assert said in wrong(text).message


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        parse(b"\xff\xfe", "f")


def test_what_selectors_match() -> None:
    member = worlds.subject(1, tags=("gpu", "home"), roles=("worker",))
    for text in ("*", "tag:gpu", "name:node-1", "role:worker"):
        assert Selector.parse(text).matches(member)
        assert str(Selector.parse(text)) == text
    for text in ("tag:worker", "name:gpu", "name:node-11", "role:admin", "tag:gp"):
        assert not Selector.parse(text).matches(member)


def test_a_subject_is_what_a_certificate_says() -> None:
    certificate = worlds.member(1, tags=("gpu",), roles=("worker",), name="alpha").certificate
    network = IPv4Network("10.77.0.0/16")
    assert Subject.of(certificate, network) == Subject(
        name="alpha",
        node=str(certificate.node_id),
        roles=("worker",),
        tags=("gpu",),
        ipv6=certificate.ipv6,
        ipv4=certificate.ipv4(network),
    )
