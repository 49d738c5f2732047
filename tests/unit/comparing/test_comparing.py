"""Figures and verdicts of a comparison, and how two servers are asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from agent.comparing import asking, report
from agent.comparing.timing import Chat, Run, figures, run_of
from agent.comparing.verdict import verdict
from agent.comparing.wish import Server, Wish, chat
from agent.errors import PeerError, UsageError


def run(rate: float, wait: float = 1.0) -> Run:
    return Run(wait, rate, 100)


def test_a_run_counts_tokens_after_the_first_of_each_chat() -> None:
    one = Chat(10.0, 10.5, 12.5, 41)
    assert run_of([one]) == Run(0.5, 20.0, 41)
    two = Chat(10.0, 11.5, 14.5, 41)
    assert run_of([one, two]) == Run(1.0, 20.0, 82)


@pytest.mark.parametrize("tokens, last", [(1, 12.0), (0, 12.0), (9, 10.5)])
def test_a_run_of_too_few_tokens_or_of_no_time_tells_nothing(tokens: int, last: float) -> None:
    assert run_of([Chat(10.0, 10.5, last, tokens)]) is None


def test_figures_are_medians_with_their_range() -> None:
    found = figures([run(10, 3.0), run(30, 1.0), run(11, 2.0)])
    assert (found.tokens_s, found.tokens_s_range) == (11, (10, 30))
    assert (found.first_token_s, found.first_token_s_range) == (2.0, (1.0, 3.0))


@pytest.mark.parametrize(
    "pairs, go, sure",
    [
        ([(14, 10), (15, 10), (16, 10)], True, True),
        ([(13, 10)], True, True),
        ([(12, 10), (11, 10)], False, True),
        ([(12, 10), (14, 10), (15, 10)], True, False),
        ([(5, 10)], False, True),
    ],
)
def test_it_is_a_go_from_the_threshold_on(
    pairs: list[tuple[float, float]], go: bool, sure: bool
) -> None:
    found = verdict([(run(a), run(b)) for a, b in pairs], 30.0)
    assert (found.go, found.sure) == (go, sure)


def test_speed_ups_are_of_pairs_so_that_what_slows_both_does_not_count() -> None:
    found = verdict([(run(20), run(10)), (run(2), run(1)), (run(200), run(100))], 30.0)
    assert found.speedup_percent_range == (100.0, 100.0)


def test_the_first_token_is_sooner_in_per_cent_of_theirs() -> None:
    assert verdict([(run(1, 0.5), run(1, 2.0))], 30.0).first_token_percent == 75.0


def test_the_report_has_figures_and_no_key() -> None:
    wish = Wish(
        Server("http://a:1/v1", "m", key="ck-secret", name="covey"),
        Server("http://b:2", "n", key="sk-secret", name="Ollama"),
    )
    found = verdict([(run(15, 0.2), run(10, 0.4))], 30.0)
    page = report.markdown(wish, found, "today")
    assert "Go: 50 % more tokens/s, 30 % more are wanted.\n" in page
    assert "| Ollama: `n` at http://b:2 | 10.0 (10.0 to 10.0) | 400 ms (400 to 400) |" in page
    assert "| difference | +50 % | 50 % sooner |" in page
    both = page + json.dumps(report.document(wish, found, "today"))
    assert "secret" not in both


def test_a_doubtful_verdict_says_so() -> None:
    found = verdict([(run(12), run(10)), (run(8), run(10)), (run(14), run(10))], 30.0)
    assert report.headline(found) == (
        "No go: 20 % more tokens/s, 30 % more are wanted. Not sure: its runs differ "
        "(-20 to +40 %); measure more of them."
    )


def test_no_two_chats_begin_alike_and_both_servers_get_the_same() -> None:
    wish = Wish(Server("http://a"), Server("http://b"))
    texts = {
        chat(wish, "m", number, stream)["messages"][0]["content"][:9]
        for number in range(9)
        for stream in range(4)
    }
    assert len(texts) == 36
    assert chat(wish, "m", 3, 1) | {"model": "n"} == chat(wish, "n", 3, 1)


@pytest.mark.parametrize(
    "raw",
    [b"{}", b"nonsense", b'{"ours": {"url": "file:///x"}, "theirs": {"url": "http://a"}}',
     b'{"ours": {"url": "http://a"}, "theirs": {"url": "http://a"}, "runs": 0}',
     b'{"ours": {"url": "http://a"}, "theirs": {"url": "http://a"}, "rnus": 1}'],
)  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(raw, type=Wish)


Handler = Callable[[web.Request], "asyncio.Future[web.StreamResponse]"]


@asynccontextmanager
async def server(answer: Handler, models: tuple[str, ...] = ("only",)) -> AsyncIterator[str]:
    async def listed(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in models]})

    app = web.Application()
    app.router.add_get("/v1/models", listed)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


def streaming(seen: list[dict], *, usage: bool, field: str = "content") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append({**await request.json(), "key": request.headers.get("authorization")})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(5):
            event = {"choices": [{"delta": {field: "a word"}}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.002)
        if usage:
            end = {"choices": [], "usage": {"completion_tokens": 9}}
            await response.write(f"data: {json.dumps(end)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


async def test_both_servers_are_asked_in_turns_and_the_first_run_is_not_counted() -> None:
    asked: list[dict] = []
    answers = streaming(asked, usage=True)
    async with server(answers) as ours, server(answers, ("x", "y")) as theirs:
        wish = Wish(Server(ours, key="ck-1"), Server(theirs, "y"), runs=2, streams=2, tokens=16)
        wish, pairs = await asking.measure(wish)
    assert (wish.ours.model, wish.theirs.model) == ("only", "y")
    assert [(a.tokens, b.tokens) for a, b in pairs] == [(18, 18), (18, 18)]
    order = [one["model"] for one in asked[::2]]
    assert order == ["only", "y", "y", "only", "only", "y"]
    assert [one["key"] for one in asked[:3]] == ["Bearer ck-1", "Bearer ck-1", None]
    assert all(one["max_tokens"] == 16 and one["stream"] for one in asked)


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
async def test_pieces_are_counted_where_a_server_does_not_say_how_many_tokens(field: str) -> None:
    answers = streaming([], usage=False, field=field)
    async with server(answers) as url:
        _, pairs = await asking.measure(Wish(Server(url), Server(url), runs=1))
    assert pairs[0][0].tokens == 5


async def test_several_models_have_to_be_told_apart() -> None:
    async with server(streaming([], usage=True), ("a", "b")) as url:
        with pytest.raises(UsageError, match=r"has 2 models: a, b"):
            await asking.measure(Wish(Server(url), Server(url)))


async def test_a_refusal_is_told_with_what_the_server_said() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": "no such model"}, status=404)

    async with server(refuse) as url:
        with pytest.raises(PeerError, match=r"answered 404: .*no such model"):
            await asking.measure(Wish(Server(url, "m"), Server(url, "m")))


async def test_an_error_in_the_stream_and_an_answer_of_nothing_are_told() -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(body=b'data: {"error": {"message": "out of memory"}}\n\n')

    async def empty(_: web.Request) -> web.Response:
        return web.Response(body=b"data: [DONE]\n\n")

    for handler, words in ((broken, "broke off: .*out of memory"), (empty, "without a token")):
        async with server(handler) as url:
            with pytest.raises(PeerError, match=words):
                await asking.measure(Wish(Server(url, "m"), Server(url, "m")))


async def test_a_server_that_is_not_there_is_named() -> None:
    async with server(streaming([], usage=True)) as url:
        pass
    with pytest.raises(PeerError, match=r"http://127.0.0.1:\d+/v1/models cannot be asked"):
        await asking.measure(Wish(Server(url), Server(url)))
