"""/tokenize and /detokenize: llama-server's forms, chats, bounds and errors."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest

from agent.engine.serve import app as app_module
from agent.engine.serve import tokens as module

Json = dict[str, Any]
BOS = 256
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def post(url: str, path: str, body: bytes | Json) -> tuple[int, Json]:
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with aiohttp.ClientSession() as session, session.post(url + path, data=data) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("inline", [True, False], ids=["short", "long"])
@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, [BOS, *b"a"]),
        ({"add_special": False, "parse_special": True, "with_pieces": False}, [BOS, *b"a"]),
        ({"parse_special": False}, list(b"<s>a")),
        ({"add_special": True}, [BOS, BOS, *b"a"]),
        ({"model": "covey-mini", "add_special": None, "unknown": 1}, [BOS, *b"a"]),
    ],
)
async def test_a_text(
    serve: Any, scripted: Any, fields: Json, ids: list[int], inline: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not inline:
        monkeypatch.setattr(app_module, "INLINE_BYTES", 0)
    model = scripted()
    url = await serve(model)
    assert await post(url, "/tokenize", {"content": "<s>a", **fields}) == (200, {"tokens": ids})
    assert model.requests == [], "the ring has nothing to do with it"


async def test_pieces_are_texts_or_the_bytes_of_a_part_of_a_character(
    serve: Any, scripted: Any
) -> None:
    ask = {"content": "<s>é!", "with_pieces": True}
    _, answer = await post(await serve(scripted()), "/tokenize", ask)
    pieces = [(token["id"], token["piece"]) for token in answer["tokens"]]
    assert pieces == [(BOS, "<s>"), (0xC3, [0xC3]), (0xA9, [0xA9]), (33, "!")]


async def test_no_text_makes_no_tokens(serve: Any, scripted: Any) -> None:
    url = await serve(scripted())
    assert await post(url, "/tokenize", {"content": ""}) == (200, {"tokens": []})
    assert await post(url, "/detokenize", {"tokens": []}) == (200, {"content": ""})


async def test_a_text_comes_back(serve: Any, scripted: Any) -> None:
    url = await serve(scripted())
    text = "<s>the ring, ünïcode\n<s>"
    _, answer = await post(url, "/tokenize", {"content": text})
    assert await post(url, "/detokenize", answer) == (200, {"content": text})
    cut = {"tokens": [0xC3], "model": "covey-mini"}
    assert await post(url, "/detokenize", cut) == (200, {"content": "\ufffd"})


async def test_a_chat_is_the_prompt_of_the_same_chat_completion(serve: Any, scripted: Any) -> None:
    model = scripted()
    model.chat_template = (
        "{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }},{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
    )
    url = await serve(model)
    for fields in (
        {},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "none"},
        {"chat_template_kwargs": {"mood": "?"}, "temperature": 0, "stream": False},
    ):
        ask = {"messages": HELLO, **fields}
        assert (await post(url, "/v1/chat/completions", ask | {"model": "covey-mini"}))[0] == 200
        status, answer = await post(url, "/tokenize", ask)
        assert (status, answer["tokens"]) == (200, list(model.requests[-1].prompt))
    assert answer["tokens"] == [BOS, *b"hello?"]
    _, answer = await post(url, "/tokenize", {"messages": HELLO, "with_pieces": True})
    assert answer["tokens"][:2] == [{"id": BOS, "piece": "<s>"}, {"id": 104, "piece": "h"}]


async def test_a_chat_longer_than_the_context_is_counted(serve: Any, scripted: Any) -> None:
    ask = {"messages": [{"role": "user", "content": "x" * 1000}]}
    status, answer = await post(await serve(scripted()), "/tokenize", ask)
    assert status == 200
    assert len(answer["tokens"]) > 1000


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/tokenize", b"{", 400, "not valid JSON"),
        ("/tokenize", b"[]", 400, "not a JSON object"),
        ("/tokenize", {}, 400, "either `content`"),
        ("/tokenize", {"content": "a", "messages": HELLO}, 400, "either `content`"),
        ("/tokenize", {"content": ["a", 1]}, 400, "content"),
        ("/tokenize", {"content": "a", "add_special": "yes"}, 400, "add_special"),
        ("/tokenize", {"content": "a", "model": "gpt-4"}, 404, "covey-mini"),
        ("/tokenize", {"messages": HELLO, "model": "gpt-4"}, 404, "covey-mini"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "no content"),
        ("/tokenize", {"messages": HELLO, "tools": [WEATHER]}, 400, "knows no tools"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [2**31]}, 400, "tokens"),
        ("/detokenize", {"tokens": [999]}, 400, "the token 999"),
        ("/detokenize", {"tokens": [1], "model": "gpt-4"}, 404, "covey-mini"),
        ("/detokenize", b'{"tokens": [' + b"[" * 5000, 400, "not valid JSON"),
    ],
)
async def test_errors_are_openais(
    serve: Any, scripted: Any, path: str, body: Any, status: int, text: str
) -> None:
    got, answer = await post(await serve(scripted()), path, body)
    assert got == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert text in answer["error"]["message"]


async def test_what_would_be_too_large_an_answer_is_refused(
    serve: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 20)
    monkeypatch.setattr(module, "MAX_PIECES", 10)
    url = await serve(scripted())
    assert (await post(url, "/tokenize", {"content": "x" * 20}))[0] == 200
    assert (await post(url, "/tokenize", {"content": "x" * 10, "with_pieces": True}))[0] == 200
    for ask, text in (
        ({"content": "x" * 21}, "21 tokens; an answer holds 20"),
        ({"content": "x" * 11, "with_pieces": True}, "leave `with_pieces` out"),
        ({"messages": HELLO * 5}, "an answer holds 20"),
    ):
        status, answer = await post(url, "/tokenize", ask)
        assert status == 400
        assert text in answer["error"]["message"]
    assert answer["error"]["param"] == "messages"


async def test_too_many_tokens_are_refused(serve: Any, scripted: Any) -> None:
    body = b'{"tokens": [' + b"1," * module.MAX_TOKENS + b"1]}"
    status, answer = await post(await serve(scripted()), "/detokenize", body)
    assert (status, answer["error"]["param"]) == (400, "tokens")


async def test_a_model_that_is_not_ready_is_503(serve: Any, scripted: Any) -> None:
    model = scripted()
    model.health = ("loading", "layers 3 of 9")
    url = await serve(model)
    for path, body in (("/tokenize", {"content": "a"}), ("/detokenize", {"tokens": [1]})):
        status, answer = await post(url, path, body)
        assert (status, answer["error"]["type"]) == (503, "server_error")
