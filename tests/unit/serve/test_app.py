"""The head's server through the official client, with a scripted model behind it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import pytest

from agent.deploy import answering
from agent.engine.generation import Sampling
from agent.engine.serve import app as app_module
from agent.engine.serve import deliver
from agent.errors import EngineError, UsageError

Json = dict[str, Any]
HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": "covey-mini", "messages": HELLO}


@pytest.fixture
def models(scripted: Any) -> Any:
    return scripted


@pytest.fixture
def start(serve: Any, client_of: Any) -> Callable[[Any], Any]:
    """Serve a model and return the official client for it."""

    async def begin(model: Any) -> openai.AsyncOpenAI:
        client: openai.AsyncOpenAI = client_of(await serve(model))
        return client

    return begin


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is watched has no event to wait for
            await asyncio.sleep(0.005)


async def post(
    url: str, body: bytes | Json, path: str = "/v1/chat/completions"
) -> tuple[int, Json, Any]:
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with aiohttp.ClientSession() as session, session.post(url + path, data=data) as answer:
        return answer.status, await answer.json(), answer.headers


async def lines(url: str, body: Json, path: str = "/v1/chat/completions") -> list[str]:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        return [line for line in (await answer.text()).split("\n\n") if line]


async def test_chat_whole(start: Any, models: Any) -> None:
    model = models([b"Hi", b" there"])
    client = await start(model)
    answer = await client.chat.completions.create(
        model="covey-mini", messages=HELLO, temperature=0, max_tokens=7, seed=3
    )
    assert answer.choices[0].message.content == "Hi there"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    prompt = b"<|user|>hello\n<|assistant|>"
    assert answer.usage.prompt_tokens == len(prompt) + 1
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (2, len(prompt) + 3)
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.model_extra["timings"] == {
        "cache_n": 1,
        "prompt_n": len(prompt),
        "prompt_ms": 500.0,
        "prompt_per_token_ms": pytest.approx(500 / len(prompt), abs=1e-3),
        "prompt_per_second": 2 * len(prompt),
        "predicted_n": 2,
        "predicted_ms": 250.0,
        "predicted_per_token_ms": 125.0,
        "predicted_per_second": 8.0,
    }
    [request] = model.requests
    assert request.prompt == (256, *prompt)
    assert request.max_tokens == 7
    assert request.sampling == Sampling(temperature=0, seed=3)


async def test_an_urgent_request_says_so_in_a_header(start: Any, models: Any) -> None:
    model = models([b"a"])
    client = await start(model)
    for said in ("7", "-12", "+5000", None):
        headers = {} if said is None else {"x-covey-priority": said}
        await client.completions.create(model="covey-mini", prompt="a", extra_headers=headers)
    assert [request.priority for request in model.requests] == [7, -12, 1000, 0]
    with pytest.raises(openai.BadRequestError, match="x-covey-priority is no integer: 'high'"):
        await client.completions.create(
            model="covey-mini", prompt="a", extra_headers={"x-covey-priority": "high"}
        )


async def test_chat_stream_with_a_character_over_tokens(start: Any, models: Any) -> None:
    euro = "€".encode()
    client = await start(models([b"5 ", euro[:1], euro[1:2], euro[2:], b"!"]))
    stream = await client.chat.completions.create(
        model="covey-mini", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [c.choices[0].delta.content for c in chunks if c.choices]
    assert deltas == ["", "5 ", "€", "!", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra["timings"]["predicted_n"] == 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert len({c.id for c in chunks}) == 1


async def test_the_stream_on_the_wire(serve: Any, models: Any) -> None:
    events = await lines(await serve(models([b"a\n\nb"])), {**CHAT, "stream": True})
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-1])
    assert "usage" not in json.loads(events[1][6:])
    assert json.loads(events[1][6:])["choices"][0]["delta"] == {"content": "a\n\nb"}


async def test_completion_with_echo_and_length(start: Any, models: Any) -> None:
    client = await start(models([b"x"] * 50))
    answer = await client.completions.create(model="covey-mini", prompt="say ", echo=True)
    assert answer.choices[0].text == "say " + "x" * 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    stream = await client.completions.create(
        model="covey-mini", prompt=[104, 105], max_tokens=2, echo=True, stream=True
    )
    assert [c.choices[0].text async for c in stream] == ["hi", "x", "x", ""]


async def test_completion_takes_token_ids_as_they_are(start: Any, models: Any) -> None:
    model = models()
    client = await start(model)
    await client.completions.create(model="covey-mini", prompt=[[5, 6, 7]])
    assert model.requests[0].prompt == (5, 6, 7)


async def test_what_takes_long_is_prepared_before_it_is_asked_for(start: Any, models: Any) -> None:
    model = models()
    client = await start(model)
    for extra in ({}, {"dry_multiplier": 0.8}):
        await client.completions.create(model="covey-mini", prompt="x", extra_body=extra)
    assert [sampling.dry_multiplier for sampling in model.prepared] == [0.8]


async def test_the_answer_may_fill_the_context(start: Any, models: Any) -> None:
    model = models()
    client = await start(model)
    await client.completions.create(model="covey-mini", prompt="abc", max_tokens=10**9)
    await client.chat.completions.create(model="covey-mini", messages=HELLO)
    assert [r.max_tokens + len(r.prompt) for r in model.requests] == [256, 256]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_tokens_ends_the_generation(
    serve: Any, models: Any, stream: bool
) -> None:
    never = asyncio.Event()
    model = models([b"one E", b"N", b"D", never, b"two"])
    url = await serve(model)
    body = {**CHAT, "stop": ["END"], "stream": stream}
    if stream:
        chunks = [json.loads(line[6:]) for line in (await lines(url, body))[:-1]]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        last = chunks[-1]["choices"][0]
        assert not any("stop_reason" in c["choices"][0] for c in chunks[:-1])
    else:
        _, answer, _ = await post(url, body)
        last = answer["choices"][0]
        text = last["message"]["content"]
        assert answer["usage"]["completion_tokens"] == 3
    assert (text, last["finish_reason"], last["stop_reason"]) == ("one ", "stop", "END")
    assert (model.delivered, model.running, model.turn.locked()) == (3, 0, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "told"),
    [([b"aENDb"], "END"), ([b"a\nb"], "\n"), ([b"\nEND"], "\n"), ([b"a EN"], None), ([], None)],
)
async def test_which_stop_string_it_was(
    serve: Any, models: Any, stream: bool, script: list[bytes], told: str | None
) -> None:
    url = await serve(models(script))
    body = {"model": "covey-mini", "prompt": "x", "stop": ["END", "\n"], "stream": stream}
    if stream:
        answer = json.loads((await lines(url, body, "/v1/completions"))[-2][6:])
    else:
        _, answer, _ = await post(url, body, "/v1/completions")
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice.get("stop_reason")) == ("stop", told)


async def test_each_choice_has_its_own_stop_string(serve: Any, models: Any) -> None:
    url = await serve(models([b"a", b"END"]))
    _, answer, _ = await post(url, {**CHAT, "stop": "END", "n": 2, "max_tokens": 1})
    assert [choice.get("stop_reason", "") for choice in answer["choices"]] == ["", ""]
    _, answer, _ = await post(url, {**CHAT, "stop": "END", "n": 2})
    assert [choice["stop_reason"] for choice in answer["choices"]] == ["END", "END"]


async def test_text_held_for_a_stop_string_comes_at_the_end(start: Any, models: Any) -> None:
    client = await start(models([b"an E", b"N"]))
    answer = await client.chat.completions.create(model="covey-mini", messages=HELLO, stop="END")
    assert answer.choices[0].message.content == "an EN"


async def test_an_answer_of_no_tokens(serve: Any, models: Any) -> None:
    url = await serve(models([]))
    events = await lines(url, {**CHAT, "stream": True})
    assert [json.loads(e[6:])["choices"][0]["finish_reason"] for e in events[:-1]] == [None, "stop"]
    _, answer, _ = await post(url, CHAT)
    assert answer["choices"][0]["message"]["content"] == ""


async def test_bos_is_not_doubled(start: Any, models: Any) -> None:
    model = models()
    model.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    client = await start(model)
    await client.chat.completions.create(model="covey-mini", messages=HELLO)
    assert model.requests[0].prompt == (256, *b"hello")


async def test_no_template_leaves_completions(start: Any, models: Any) -> None:
    model = models()
    model.chat_template = None
    client = await start(model)
    with pytest.raises(openai.BadRequestError, match=r"no chat template.*/v1/completions"):
        await client.chat.completions.create(model="covey-mini", messages=HELLO)
    answer = await client.completions.create(model="covey-mini", prompt="p")
    assert answer.choices[0].text == "Hi"


async def test_models_and_health(serve: Any, client_of: Any, models: Any) -> None:
    model = models()
    url = await serve(model)
    client = client_of(url)
    [entry] = (await client.models.list()).data
    assert (entry.id, entry.created, entry.owned_by) == ("covey-mini", 1_700_000_000, "covey")
    assert (await client.models.retrieve("covey-mini")).model_extra == {
        "context_length": 256,
        "capabilities": ["chat", "completions"],
    }
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("a/b")
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "/health") as answer:
            assert answer.status == 200
            assert await answer.json() == {
                "status": "ok", "model": "covey-mini", "context": 256, "running": 0,
            }  # fmt: skip
        model.health = ("broken", "stage 2 (attic) is gone")
        async with session.get(url + "/health") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            body = await answer.json()
            assert (body["status"], body["reason"]) == ("broken", "stage 2 (attic) is gone")


async def test_health_says_how_many_are_being_answered(serve: Any, models: Any) -> None:
    go_on = asyncio.Event()
    url = await serve(models([b"Hi", go_on, b"!"]))
    asked = [asyncio.create_task(lines(url, CHAT | {"stream": True})) for _ in range(2)]

    async def until_running(count: int) -> None:
        async with asyncio.timeout(5):
            while await answering.running(url) != count:  # noqa: ASYNC110 - it is asked for
                await asyncio.sleep(0.005)

    await until_running(2)
    assert not await answering.until_idle(url, 0.05)
    go_on.set()
    assert await asyncio.gather(*asked)
    await until_running(0)
    status, _, _ = await post(url, b"no JSON")
    assert status == 400
    assert await answering.running(url) == 0
    assert await answering.until_idle(url, 5.0)


async def test_a_head_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_POLL_S", 0.0)
    assert await answering.running("http://127.0.0.1:9") is None
    assert await answering.until_idle("http://127.0.0.1:9", 20.0)


@pytest.mark.parametrize("state", ["loading", "broken"])
async def test_a_ring_that_cannot_serve_is_503(serve: Any, models: Any, state: str) -> None:
    model = models()
    model.health = (state, "layers 3 of 9")
    status, body, headers = await post(await serve(model), CHAT)
    assert (status, headers["Retry-After"]) == (503, "5")
    assert body["error"]["message"] == f"The model covey-mini is {state}: layers 3 of 9."
    assert body["error"]["type"] == "server_error"
    assert model.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_ring_that_breaks_before_the_first_token_is_503(
    serve: Any, models: Any, stream: bool
) -> None:
    model = models([EngineError("stage 1 is gone", hint="Wait.")])
    status, body, headers = await post(await serve(model), {**CHAT, "stream": stream})
    assert (status, headers["Retry-After"]) == (503, "5")
    assert body["error"]["message"] == "stage 1 is gone. Wait."
    assert model.running == 0


@pytest.mark.parametrize(
    ("fault", "text"),
    [(EngineError("stage 1 is gone"), "stage 1 is gone"), (KeyError("secret"), "internal error")],
)
async def test_a_ring_that_breaks_in_the_stream_is_an_event(
    serve: Any, client_of: Any, models: Any, fault: Exception, text: str
) -> None:
    model = models([b"a", fault])
    url = await serve(model)
    events = await lines(url, {**CHAT, "stream": True})
    assert json.loads(events[-1][6:])["error"]["message"] == text + "."
    assert "data: [DONE]" not in events
    assert model.running == 0
    with pytest.raises(openai.APIError, match=text):
        async for _ in await client_of(url).chat.completions.create(
            model="covey-mini", messages=HELLO, stream=True
        ):
            pass


async def test_a_fault_of_ours_tells_no_details(
    serve: Any, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = await serve(models([KeyError("secret")]))
    status, body, _ = await post(url, CHAT)
    assert status == 500
    assert body["error"]["message"] == "internal error."
    await lines(await serve(models([b"a", KeyError("secret")])), {**CHAT, "stream": True})
    # Nor does the log: the words of an error may quote a prompt.
    assert caplog.text.count("KeyError") == 2
    assert "conftest.py" in caplog.text, "it says where"
    assert "KeyError('secret')" not in caplog.text
    assert "KeyError: 'secret'" not in caplog.text


async def test_what_the_model_refuses_is_400(serve: Any, models: Any) -> None:
    status, body, _ = await post(await serve(models([UsageError("token 9999 is unknown")])), CHAT)
    assert (status, body["error"]["message"]) == (400, "token 9999 is unknown.")


async def test_a_prompt_too_long_says_both_numbers(start: Any, models: Any) -> None:
    client = await start(models())
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="covey-mini", prompt="x" * 255)
    assert caught.value.code == "context_length_exceeded"
    assert "256 tokens" in caught.value.message
    assert caught.value.param == "prompt"
    await client.completions.create(model="covey-mini", prompt="x" * 254)


async def test_a_long_prompt_is_prepared_beside_the_loop(
    serve: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "INLINE_BYTES", 10)
    status, body, _ = await post(await serve(models()), CHAT)
    assert status == 200
    status, body, _ = await post(await serve(models()), {**CHAT, "n": 0})
    assert (status, body["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, None),
        ("/v1/completions", b"\xff", 400, None),
        ("/v1/chat/completions", {**CHAT, "model": "gpt-4"}, 404, "model_not_found"),
        ("/v1/completions", {"model": "nope", "prompt": "x"}, 404, "model_not_found"),
        ("/v1/completions", {"model": "covey-mini"}, 400, None),
        ("/v1/chat/completions", {**CHAT, "tools": [1]}, 400, None),
        ("/v1/chat/completions", {**CHAT, "functions": [1]}, 400, "unsupported_parameter"),
        ("/v1/elsewhere", {}, 404, None),
        ("/v1/embeddings", {}, 400, "unsupported_model"),
        ("/v1/models", {}, 405, None),
        ("/v1/completions", b"x" * (app_module.MAX_BODY_BYTES + 1), 413, None),
    ],
)
async def test_errors_are_openais(
    serve: Any, models: Any, path: str, body: Any, status: int, code: str | None
) -> None:
    got, answer, _ = await post(await serve(models()), body, path)
    assert got == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]


async def test_a_client_that_leaves_its_stream_frees_the_ring_within_a_token(
    serve: Any, models: Any
) -> None:
    step = asyncio.Event()
    model = models([b"a", step, *[b"b"] * 5000])
    url = await serve(model)
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + "/v1/chat/completions", json={**CHAT, "stream": True})
        await answer.content.readline()
        answer.close()
    await until(lambda: model.running == 0)
    assert model.delivered == 1


async def test_a_client_that_leaves_between_tokens_stops_them(serve: Any, models: Any) -> None:
    steps = [asyncio.Event() for _ in range(3)]
    model = models([b"a", steps[0], b"b", steps[1], b"c", steps[2], b"d"])
    model.context = 4096
    url = await serve(model)
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + "/v1/chat/completions", json={**CHAT, "stream": True})
        await answer.content.readline()
        steps[0].set()
        await until(lambda: model.delivered == 2)
        answer.close()
    await until(lambda: model.running == 0)
    assert model.delivered == 2


async def test_a_client_that_leaves_the_queue_does_not_block_it(serve: Any, models: Any) -> None:
    step = asyncio.Event()
    model = models([b"a", step])
    url = await serve(model)

    first = asyncio.create_task(post(url, CHAT))
    await until(lambda: model.running == 1)
    leaver = asyncio.create_task(post(url, CHAT))
    await until(lambda: model.waiting == 1)
    last = asyncio.create_task(post(url, CHAT))
    await until(lambda: model.waiting == 2)
    leaver.cancel()
    await until(lambda: model.waiting == 1)
    step.set()
    assert [status for status, _, _ in await asyncio.gather(first, last)] == [200, 200]
    assert (model.running, model.turn.locked()) == (0, False)


async def test_too_many_waiting_is_503(
    serve: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_REQUESTS", 1)
    step = asyncio.Event()
    model = models([step, b"a"])
    url = await serve(model)
    first = asyncio.create_task(post(url, CHAT))
    await until(lambda: model.running == 1)
    status, _, headers = await post(url, CHAT)
    assert (status, headers["Retry-After"]) == (503, "5")
    step.set()
    assert (await first)[0] == 200


async def test_silence_is_bridged_by_comments(
    serve: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "KEEP_ALIVE_S", 0.0)
    step = asyncio.Event()
    url = await serve(models([step, b"a"]))
    async with aiohttp.ClientSession() as session:
        answer = await session.post(url + "/v1/chat/completions", json={**CHAT, "stream": True})
        assert await answer.content.readline() == b": still working\n"
        step.set()
        rest = await answer.text()
    assert rest.endswith("data: [DONE]\n\n")
    assert '"content":"a"' in rest


async def test_a_client_that_reads_nothing_does_not_hold_the_ring(
    serve: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "WRITE_TIMEOUT_S", 0.05)
    model = models([b"x" * 2**20] * 200)
    url = await serve(model)
    async with aiohttp.ClientSession(read_bufsize=1) as session:
        answer = await session.post(url + "/v1/chat/completions", json={**CHAT, "stream": True})
        await until(lambda: model.running == 0)
        assert model.delivered < 200
        answer.close()


async def test_logprobs_of_a_chat(start: Any, models: Any) -> None:
    euro = "€".encode()
    client = await start(models([b"a", euro[:1], euro[1:], b"END", b"x"]))
    ask = {"model": "covey-mini", "messages": HELLO, "logprobs": True, "stop": "END"}
    answer = await client.chat.completions.create(**ask, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.content == "a€"
    entries = choice.logprobs.content
    assert [entry.token for entry in entries] == ["a", "\ufffd", "\ufffd\ufffd"]
    assert [entry.logprob for entry in entries] == [-0.25, -0.5, -0.75]
    assert bytes(entries[1].bytes + entries[2].bytes) == euro
    assert [(top.token, top.logprob) for top in entries[0].top_logprobs] == [("a", -0.5), ("0", -1)]
    stream = await client.chat.completions.create(**ask, stream=True)
    parts = [c.choices[0] async for c in stream]
    told = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
    assert [entry.logprob for entry in told] == [-0.25, -0.5, -0.75]
    assert told[0].top_logprobs == []
    # Those of the euro come with it.
    assert [len(p.logprobs.content) for p in parts if p.delta.content and p.logprobs] == [1, 2]
    plain = await client.chat.completions.create(model="covey-mini", messages=HELLO)
    assert plain.choices[0].logprobs is None


async def test_logprobs_of_a_completion(start: Any, models: Any) -> None:
    model = models([b"one", b" two"])
    client = await start(model)
    ask = {"model": "covey-mini", "prompt": "x", "logprobs": 1}
    answer = await client.completions.create(**ask)
    logprobs = answer.choices[0].logprobs
    assert (logprobs.tokens, logprobs.text_offset) == (["one", " two"], [0, 3])
    assert logprobs.token_logprobs == [-0.25, -0.5]
    assert logprobs.top_logprobs == [{"one": -0.5}, {" two": -0.5}]
    chunks = [c.choices[0] async for c in await client.completions.create(**ask, stream=True)]
    assert [c.logprobs.text_offset for c in chunks] == [[0], [3], []]
    with pytest.raises(openai.BadRequestError, match="echo"):
        await client.completions.create(**ask, echo=True)


@pytest.mark.parametrize("seed", [None, 7, 2**32 - 2])
async def test_choices_are_answers_of_their_own(start: Any, models: Any, seed: Any) -> None:
    model = models([b"Hi", b"!"])
    client = await start(model)
    ask: Json = {"model": "covey-mini", "messages": HELLO, "n": 3, "seed": seed}
    answer = await client.chat.completions.create(**ask)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == ["Hi!"] * 3
    assert answer.usage.completion_tokens == 6
    assert answer.usage.prompt_tokens == len(model.requests[0].prompt)
    assert answer.model_extra["timings"]["predicted_n"] == 6
    seeds = [request.sampling.seed for request in model.requests]
    assert len(set(seeds)) == (1 if seed is None else 3)
    assert seeds[0] == seed and 2**32 - 1 not in seeds
    options = {"include_usage": True}
    stream = await client.chat.completions.create(**ask, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    for index in range(3):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert [c.delta.content for c in own] == ["", "Hi", "!", None]
        assert [c.finish_reason for c in own] == [None, None, None, "stop"]
    assert chunks[-1].usage.completion_tokens == 6
    texts = await client.completions.create(model="covey-mini", prompt="x", n=2, echo=True)
    assert [c.text for c in texts.choices] == ["xHi!", "xHi!"]


async def test_choices_count_as_requests(
    serve: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_REQUESTS", 2)
    url = await serve(models())
    assert (await post(url, {**CHAT, "n": 2}))[0] == 200
    assert (await post(url, {**CHAT, "n": 3}))[0] == 503


TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
KNOWING = "{{ tools }}<tool_call>{{ messages[0].content }}"


async def test_calls_in_an_answer(start: Any, models: Any) -> None:
    script = [b"Hm. <tool", b'_call>{"name": "look", ', b'"arguments": {"at": 1}}</tool_call>']
    model = models(script)
    model.chat_template = KNOWING
    client = await start(model)
    fields: Json = {"model": "covey-mini", "messages": HELLO, "tools": [TOOL]}
    choice = (await client.chat.completions.create(**fields)).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hm. ", "tool_calls")
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "look")
    assert json.loads(call.function.arguments) == {"at": 1}
    assert model.requests[0].sampling.grammar == ""
    chunks = [
        c.choices[0] async for c in await client.chat.completions.create(**fields, stream=True)
    ]
    calls = [c.delta.tool_calls[0] for c in chunks if c.delta.tool_calls]
    assert [(c.function.name, c.function.arguments) for c in calls] == [
        ("look", ""), (None, '{"at": 1}'),
    ]  # fmt: skip
    assert "".join(c.delta.content or "" for c in chunks) == "Hm. "
    assert chunks[-1].finish_reason == "tool_calls"
    # A limit that cuts a call off leaves its text, and says so.
    cut = (await client.chat.completions.create(**fields, max_tokens=2)).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.content == 'Hm. <tool_call>{"name": "look", '
    none = await client.chat.completions.create(**fields, tool_choice="none")
    assert none.choices[0].message.content.endswith("</tool_call>")


async def test_the_first_call_ends_an_answer_that_may_have_one(start: Any, models: Any) -> None:
    call = b'<tool_call>{"name": "look"}</tool_call>'
    model = models([call, asyncio.Event(), call])
    model.chat_template = KNOWING
    client = await start(model)
    answer = await client.chat.completions.create(
        model="covey-mini", messages=HELLO, tools=[TOOL], parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls) == 1
    assert (model.running, answer.choices[0].finish_reason) == (0, "tool_calls")


async def test_a_tool_that_must_be_called_becomes_a_grammar(start: Any, models: Any) -> None:
    model = models()
    model.chat_template = KNOWING
    client = await start(model)
    fields: Json = {"model": "covey-mini", "messages": HELLO, "tools": [TOOL]}
    await client.chat.completions.create(**fields, tool_choice="required")
    [prepared] = model.prepared
    assert prepared.grammar == model.requests[0].sampling.grammar
    assert '"<tool_call>"' in prepared.grammar and "look" in prepared.grammar


async def test_a_template_that_knows_no_tools_says_so(start: Any, models: Any) -> None:
    client = await start(models())
    fields: Json = {"model": "covey-mini", "messages": HELLO, "tools": [TOOL]}
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        await client.chat.completions.create(**fields)
    answer = await client.chat.completions.create(**fields, tool_choice="none")
    assert answer.choices[0].message.content == "Hi"
