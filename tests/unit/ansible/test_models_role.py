"""The models of an inventory: what is there already, what is done, how far it is."""

from typing import Any

import pytest

from tests.unit.ansible.library import library

model = library("covey_model")
deployment = library("covey_deployment")

ID = "ab" * 32
PULLED: dict[str, Any] = {
    "name": "chat", "here": True, "phase": "whole", "sha256": "cd" * 32, "pinned": False,
    "error": "", "size": 8 << 20, "done": 8 << 20, "id": ID,
}  # fmt: skip
PULL: dict[str, Any] = {
    "name": "chat", "source": "https://x/chat.gguf", "sha256": None, "pin": None, "anywhere": False,
}  # fmt: skip
ASKED: dict[str, Any] = {
    "name": "chat", "model": "chat", "nodes": None, "min_nodes": 1, "rings": "1",
    "objective": "auto", "tags": [], "not_tags": [], "context": 0, "engine": "ring", "draft": "",
}  # fmt: skip
RING: dict[str, Any] = {
    "name": "chat", "model": "chat", "model_id": ID, "rings": 1, "engine": "ring", "draft": "",
    "phase": "ready", "progress": "", "error": None,
    "wish": {"nodes": None, "least": 1, "context": 0, "objective": "auto", "only": [], "never": []},
}  # fmt: skip


@pytest.mark.parametrize(
    "there, asked, standing",
    [
        ([], {}, "absent"),
        ([PULLED], {}, "whole"),
        ([{**PULLED, "phase": "fetching"}], {}, "coming"),
        ([{**PULLED, "here": False, "phase": "elsewhere"}], {}, "absent"),
        ([{**PULLED, "here": False, "phase": "elsewhere"}], {"anywhere": True}, "whole"),
        ([PULLED], {"pin": True}, "unpinned"),
        ([PULLED], {"pin": False, "sha256": "cd" * 32}, "whole"),
        ([{**PULLED, "name": "other"}], {}, "absent"),
    ],
)
def test_how_a_model_stands(there: Any, asked: dict[str, Any], standing: str) -> None:
    assert model.standing(there, {**PULL, **asked}) == standing


def test_another_file_of_the_name_is_not_taken_for_it() -> None:
    with pytest.raises(model.Refused, match="is there with the SHA-256"):
        model.standing([PULLED], {**PULL, "sha256": "00" * 32})


def test_what_is_asked_of_a_pull_is_said_to_the_agent() -> None:
    assert model.words(PULL) == ["pull", "https://x/chat.gguf", "--name", "chat"]
    said = model.words({**PULL, "sha256": "00", "pin": True})
    assert said[4:] == ["--sha256", "00", "--pin"]


def test_how_far_a_pull_is_and_why_it_failed() -> None:
    assert model.progress([{**PULLED, "phase": "fetching", "done": 3 << 20}], "chat") == (
        "fetching, 3 of 8 MiB"
    )
    with pytest.raises(model.Refused, match="nobody has it"):
        model.progress([{**PULLED, "phase": "failed", "error": "nobody has it"}], "chat")


def test_a_deployment_that_is_as_asked_is_the_same() -> None:
    assert deployment.there(RING, ASKED, {}) == deployment.wanted(ASKED)
    # Its model has another name where it was deployed.
    renamed = {**RING, "model": "llama"}
    assert deployment.there(renamed, ASKED, {"chat": ID}) == deployment.wanted(ASKED)
    assert deployment.there(renamed, ASKED, {"chat": "other"}) != deployment.wanted(ASKED)


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 2}, {"min_nodes": 2}, {"rings": "2"}, {"objective": "latency"}, {"tags": ["gpu"]},
        {"not_tags": ["slow"]}, {"context": 512}, {"engine": "rpc"}, {"draft": "mini"},
        {"model": "m"},
    ],
)  # fmt: skip
def test_one_that_is_not_is_another(change: dict[str, Any]) -> None:
    assert deployment.there(RING, {**ASKED, **change}, {}) != deployment.wanted({**ASKED, **change})


def test_how_many_rings_auto_made_does_not_matter() -> None:
    auto = {**ASKED, "rings": "auto"}
    assert deployment.there({**RING, "rings": 3}, auto, {}) == deployment.wanted(auto)


def test_what_is_asked_of_a_deployment_is_said_to_the_agent() -> None:
    said = deployment.words({**ASKED, "nodes": 2, "tags": ["a", "b"], "context": 512, "draft": "d"})
    assert said[:5] == ["deploy", "chat", "--name", "chat", "--no-wait"]
    text = " ".join(said)
    for words in ("--nodes 2", "--tag a --tag b", "--context 512", "--draft d", "--rings 1"):
        assert words in text
    assert "--nodes" not in deployment.words(ASKED)


def test_how_far_a_deployment_is() -> None:
    loading = {**RING, "phase": "loading", "progress": "loads 2 of 3"}
    waits = {**RING, "phase": "waiting", "progress": "no worker is left"}
    assert deployment.look([RING])["done"]
    assert deployment.look([RING, loading]) == {
        "done": False, "progress": "loads 2 of 3", "waiting": False,
    }  # fmt: skip
    assert deployment.look([waits])["waiting"]
    failed = {**RING, "phase": "failed", "error": {"message": "cut short.", "hint": "Fetch it."}}
    with pytest.raises(deployment.Refused, match=r"cut short\. Fetch it\."):
        deployment.look([failed])


def test_what_the_agent_says_to_people_is_told(tmp_path: Any) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\necho first >&2\necho 'agent: chat is damaged.' >&2\nexit 8\n")
    program.chmod(0o755)
    with pytest.raises(model.Refused, match=r"^agent: chat is damaged\.$"):
        model.ask(str(program), "ps")
    with pytest.raises(model.Refused, match="cannot be started"):
        model.ask(str(tmp_path / "none"), "ps")
    program.write_text("#!/bin/sh\nexit 10\n")
    with pytest.raises(model.Away, match="`agent ps` ended with 10"):
        model.ask(str(program), "ps")
    program.write_text('#!/bin/sh\necho "{\\"words\\": \\"$*\\"}"\n')
    assert model.ask(str(program), "ps") == {"words": "ps --json"}
