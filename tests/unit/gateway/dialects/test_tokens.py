"""/tokenize and /detokenize at the gateway: which model is meant, what passes."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.port import Refused
from gateway.dialects.tokens import Tokens

PATHS = ("/tokenize", "/detokenize")


async def through(url: str, path: str, **fields: Any) -> Any:
    """Return what becomes of a head's answer."""
    asked = Tokens(path, lambda: ("covey-mini",)).ask(json.dumps(fields).encode(), 0.0)
    assert (asked.path, asked.streamed, "stream" in asked.body) == (path, False, False)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + asked.path, json=asked.body) as answer,
    ):
        assert answer.status == 200
        return json.loads(asked.reader.whole(await answer.json()))


async def test_a_head_answers(serve: Any, scripted: Any) -> None:
    url = await serve(scripted())
    answer = await through(url, "/tokenize", content="hi ü")
    assert answer == {"tokens": list("hi ü".encode())}
    assert await through(url, "/detokenize", **answer) == {"content": "hi ü"}
    hello = [{"role": "user", "content": "hello"}]
    found = (await through(url, "/tokenize", model="covey-mini", messages=hello))["tokens"]
    assert bytes(found[1:]) == b"<|user|>hello\n<|assistant|>"
    assert (await through(url, "/tokenize", messages=hello, stream=True))["tokens"] == found
    pieces = await through(url, "/tokenize", content="h", with_pieces=True)
    assert pieces == {"tokens": [{"id": 104, "piece": "h"}]}


@pytest.mark.parametrize("path", PATHS)
def test_the_only_model_need_not_be_named(path: str) -> None:
    def model(known: tuple[str, ...], body: bytes) -> Any:
        return Tokens(path, lambda: known).ask(body, 0.0).body["model"]

    for body in (b"{}", b'{"model": null}'):
        assert model(("a",), body) == "a"
        with pytest.raises(Refused, match="there are 2: a, b") as caught:
            model(("b", "a"), body)
        assert caught.value.status == 400
        with pytest.raises(Refused, match="there is none yet") as caught:
            model((), body)
        assert caught.value.status == 503
    assert model(("a", "b"), b'{"model": "c"}') == "c", "whether it exists is the router's question"


NO_OBJECTS = st.binary().filter(lambda raw: not raw.lstrip().startswith(b"{"))


@given(NO_OBJECTS | st.sampled_from([b"[]", b"5", b"[" * 100_000, b"{"]))
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match="not a JSON object"):
        Tokens("/tokenize", lambda: ("a",)).ask(raw, 0.0)


@pytest.mark.parametrize(
    ("status", "kind", "type_", "code"),
    [
        (404, "model_not_found", "invalid_request_error", "model_not_found"),
        (400, "invalid_request_error", "invalid_request_error", None),
        (503, "server_error", "server_error", None),
        (400, "", "invalid_request_error", None),
    ],
)
def test_errors_are_openais(status: int, kind: str, type_: str, code: str | None) -> None:
    error = json.loads(Tokens("/tokenize", tuple).error(status, "no", kind))["error"]
    assert error == {"message": "no", "type": type_, "param": None, "code": code}
