"""The verdicts: their order, their sentences, and questions about many members at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import acl_worlds as worlds
import pytest
from acl_worlds import COVEY

from agent.acl.policy import Policy, parse
from agent.acl.verdict import answer, explain
from agent.errors import UsageError

POLICY = parse(
    b"""
[[rule]]
from = ["tag:home"]
to = ["tag:gpu"]
ports = ["tcp:22"]
action = "deny"

[[rule]]
from = ["tag:ops", "tag:home"]
to = ["tag:gpu"]
ports = ["tcp:20-30", "icmp"]
action = "allow"

[[rule]]
from = ["name:node-3"]
to = "*"
ports = "*"
action = "deny"
""",
    "/etc/covey/acl.toml",
)
OPS = worlds.subject(0, tags=("ops",))
HOME = worlds.subject(1, tags=("home", "ops"))
GPU = worlds.subject(2, tags=("gpu",))
BAD = worlds.subject(3)
MEMBERS = [OPS, HOME, GPU, BAD]


@pytest.mark.parametrize(
    ("src", "dst", "port", "allowed", "rule"),
    [
        (OPS, GPU, ("tcp", 22), True, 2),
        (HOME, GPU, ("tcp", 22), False, 1),
        (HOME, GPU, ("tcp", 23), True, 2),
        (OPS, GPU, ("udp", 22), False, "default"),
        (OPS, GPU, ("icmp", 0), True, 2),
        (GPU, OPS, ("icmp", 0), True, "covey"),
        (GPU, OPS, ("tcp", 22), False, "default"),
        (GPU, OPS, ("tcp", 7105), True, "covey"),
        (GPU, OPS, ("udp", 7071), True, "covey"),
        (BAD, OPS, ("tcp", 7105), False, 3),
        (BAD, OPS, ("icmp", 0), False, 3),
        (BAD, BAD, ("tcp", 1), True, "self"),
    ],
)
def test_the_first_rule_that_matches_decides(
    src: Any, dst: Any, port: Any, allowed: bool, rule: int | str
) -> None:
    verdict = explain(POLICY, COVEY, src, dst, *port)
    assert (verdict.allowed, verdict.rule) == (allowed, rule)
    assert verdict.sentence.endswith(".")
    assert ("may not" in verdict.sentence) is not allowed
    lines: dict[int | str, int] = {1: 2, 2: 8, 3: 14}
    assert verdict.line == lines.get(rule)


def test_the_sentences() -> None:
    said = [
        explain(policy, COVEY, src, GPU, *port).sentence
        for policy, src, port in (
            (POLICY, OPS, ("tcp", 22)),
            (POLICY, HOME, ("tcp", 22)),
            (POLICY, OPS, ("udp", 9)),
            (Policy(), OPS, ("tcp", 7070)),
            (Policy(), OPS, ("icmp", 0)),
        )
    ]
    assert said == [
        "node-0 may reach node-2 on tcp 22: rule 2 (acl.toml line 8) allows it.",
        "node-1 may not reach node-2 on tcp 22: rule 1 (acl.toml line 2) denies it.",
        "node-0 may not reach node-2 on udp 9: no rule allows it, and Covey serves nothing there.",
        "node-0 may reach node-2 on tcp 7070: Covey opens stage files to members.",
        "node-0 may reach node-2 with ping: Covey opens ping to members.",
    ]


def ask(src: str, dst: str, port: str, own: str = GPU.node) -> dict[str, Any]:
    return answer(POLICY, COVEY, MEMBERS, own, (src, dst, port))


def test_one_pair_is_answered_in_a_sentence() -> None:
    found = ask("node-0", "node-2", "22")
    assert found["allowed"] is True
    assert found["sentence"] == found["verdicts"][0]["sentence"]
    assert found["here"] is True
    assert found["file"] == "/etc/covey/acl.toml"
    assert ask("node-2", "node-0", "22")["here"] is False


def test_members_are_named_by_the_end_of_their_id() -> None:
    assert ask(OPS.node[-8:], GPU.node, "22")["verdicts"][0]["src"] == "node-0"


def test_a_tag_stands_for_all_who_have_it() -> None:
    found = ask("tag:ops", "tag:gpu", "22")
    assert found["allowed"] is False
    assert found["sentence"] == "1 of 2 pairs of tag:ops and tag:gpu may."
    assert [(v["src"], v["allowed"], v["rule"]) for v in found["verdicts"]] == [
        ("node-0", True, 2),
        ("node-1", False, 1),
    ]
    assert ask("tag:ops", "tag:gpu", "icmp")["allowed"] is True
    everyone = ask("*", "*", "icmp")["verdicts"]
    assert len(everyone) == 12
    assert all(v["src"] != v["dst"] for v in everyone)
    assert ask("tag:gpu", "tag:gpu", "22")["verdicts"][0]["rule"] == "self"


@pytest.mark.parametrize(
    ("src", "said"),
    [
        ("nobody", "no member is called 'nobody'"),
        ("tag:none", "no member is tag:none"),
        ("tag:", "cannot be a tag"),
        ("role:boss", "is not a role"),
        ("ip:1", "names nobody"),
        ("", "no member is called ''"),
        ("000", "no member is called '000'"),
        ("12D3Koo", "no member is called"),
    ],
)
def test_words_that_name_nobody(src: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask(src, "node-2", "22")
    assert said in caught.value.message


def test_words_that_name_several() -> None:
    twin = replace(BAD, node=BAD.node[:8] + "9" + BAD.node[9:])
    for word in (BAD.node[-8:], "node-3"):
        with pytest.raises(UsageError, match="2 members are called"):
            answer(POLICY, COVEY, [*MEMBERS, twin], GPU.node, (word, "node-2", "22"))


def test_a_question_about_too_many_pairs() -> None:
    members = [worlds.subject(n) for n in range(40)]
    with pytest.raises(UsageError, match="1560 pairs"):
        answer(POLICY, COVEY, members, "", ("*", "*", "22"))
