"""Figures and verdicts of a comparison, and how servers are asked."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from agent.comparing import asking, report
from agent.comparing.timing import Chat, Run, figures, run_of
from agent.comparing.verdict import interval, overall, verdict
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
    ("ours", "outcome"),
    [
        ([14, 15, 16], "go"),
        ([13, 13, 13], "go"),
        ([12, 11, 12], "no go"),
        ([5, 4, 6], "no go"),
        ([12, 14, 15], "undecided"),
        ([16, 17], "undecided"),
        ([2], "undecided"),
        # Of eight rounds one may be off either way.
        ([9, 14, 14, 14, 14, 14, 14, 40], "go"),
        ([9, 9, 14, 14, 14, 14, 14, 14], "undecided"),
    ],
)
def test_it_is_decided_where_the_rounds_agree(ours: list[float], outcome: str) -> None:
    assert verdict([(run(rate), run(10)) for rate in ours], 30.0).outcome == outcome


@pytest.mark.parametrize("count", [5, 8, 20])
def test_the_true_median_is_in_the_interval_nine_times_of_ten(count: int) -> None:
    """By counting all ways in which values may lie below (0) or above (1) it."""
    held = 0.0
    for below in range(count + 1):
        low, high = interval([0.0] * below + [1.0] * (count - below))
        held += math.comb(count, below) / 2**count * (low == 0.0 and high == 1.0)
    assert 0.9 <= held < 0.97


def test_several_verdicts_are_as_good_as_the_worst() -> None:
    assert overall(["go", "go"]) == "go"
    assert overall(["go", "undecided"]) == "undecided"
    assert overall(["go", "undecided", "no go"]) == "no go"


def test_speed_ups_are_of_rounds_so_that_what_slows_both_does_not_count() -> None:
    found = verdict([(run(20), run(10)), (run(2), run(1)), (run(200), run(100))], 30.0)
    assert found.speedup_percent_range == (100.0, 100.0)


def test_the_first_token_is_sooner_in_per_cent_of_theirs() -> None:
    assert verdict([(run(1, 0.5), run(1, 2.0))], 30.0).first_token_percent == 75.0


WISH = Wish(
    Server("http://a:1/v1", "m", key="ck-secret", name="covey"),
    (Server("http://b:2", "n", key="sk-secret", name="Ollama"), Server("http://c:3/v1", "o")),
    rounds=3,
    streams=(1, 8),
)
FOUND = {1: [(run(15, 0.2), run(10, 0.4), run(14, 0.1))] * 3,
         8: [(run(90), run(30), run(60))] * 3}  # fmt: skip
CONDITIONS = report.Conditions("today", {"machine": "box"})


def test_the_report_has_figures_and_no_key() -> None:
    levels = report.levels(WISH, FOUND)
    assert report.outcome(levels) == "no go"
    page = report.markdown(WISH, levels, CONDITIONS)
    assert page.startswith("# Covey against Ollama, c:3\n\nNo go: 7 % more tokens/s against c:3, "
                           "one chat, 30 % more are wanted.\n")  # fmt: skip
    assert "| covey: `m` at http://a:1 | 15.0 (15.0 to 15.0) | 200 ms (200 to 200) |" in page
    assert (
        "| Ollama: `n` at http://b:2 | 10.0 (10.0 to 10.0) | 400 ms (400 to 400) "
        "| +50 % (+50 to +50) | 50 % sooner | Go |"
    ) in page
    assert "## 8 chats at once\n" in page
    assert "* machine: box\n" in page
    told = report.document(WISH, levels, CONDITIONS)
    assert [level["streams"] for level in told["levels"]] == [1, 8]
    assert told["levels"][1]["verdicts"][0]["against"] == "Ollama"
    assert told["levels"][1]["verdicts"][0]["speedup_percent"] == 200.0
    assert len(told["levels"][0]["rounds"]) == 3
    assert "secret" not in page + json.dumps(told)


def test_one_server_alone_is_measured_and_not_judged() -> None:
    wish = msgspec.structs.replace(WISH, others=(), streams=(1,))
    levels = report.levels(wish, {1: [(run(15),)]})
    assert report.outcome(levels) is None
    assert report.headline(wish, levels) == "15.0 tokens/s, compared with nothing."
    assert "# Covey against nothing" in report.markdown(wish, levels, CONDITIONS)


@pytest.mark.parametrize(
    ("rates", "why"),
    [([12, 8, 14], "its rounds differ more than that (-20 to +40 %)"),
     ([12], "fewer than 3 rounds say nothing of chance")],
)  # fmt: skip
def test_what_is_not_decided_says_why(rates: list[float], why: str) -> None:
    found = verdict([(run(rate), run(10)) for rate in rates], 30.0)
    assert report.sentence(found) == (
        f"Not decided: 20 % more tokens/s, 30 % more are wanted, but {why}; measure more of them, "
        "with nothing else at work."
    )


def test_no_two_chats_begin_alike_and_both_servers_get_the_same() -> None:
    wish = Wish(Server("http://a"), salt="s.")
    texts = {
        chat(wish, "m", number, stream)["messages"][0]["content"][:11]
        for number in range(9)
        for stream in range(4)
    }
    assert len(texts) == 36
    assert chat(wish, "m", 3, 1) | {"model": "n"} == chat(wish, "n", 3, 1)


@pytest.mark.parametrize(
    "raw",
    [b"{}", b"nonsense", b'{"ours": {"url": "file:///x"}}',
     b'{"ours": {"url": "http://a"}, "rounds": 0}', b'{"ours": {"url": "http://a"}, "rnus": 1}',
     b'{"ours": {"url": "http://a"}, "streams": []}',
     b'{"ours": {"url": "http://a"}, "others": [{"url": "a"}]}'],
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
            words = len(seen[-1]["messages"][0]["content"].split())
            counts = {"completion_tokens": 9, "prompt_tokens": 10 + 2 * words}
            end = {"choices": [], "usage": counts}
            await response.write(f"data: {json.dumps(end)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


async def test_servers_are_asked_in_turns_and_the_first_round_is_not_counted() -> None:
    asked: list[dict] = []
    answers = streaming(asked, usage=True)
    told: list[str] = []
    async with server(answers) as ours, server(answers, ("x", "y")) as theirs:
        wish = Wish(
            Server(ours, key="ck-1"), (Server(theirs, "y"),), rounds=2, streams=(2, 1), tokens=16
        )
        wish, found = await asking.measure(wish, told.append)
    assert [one.model for one in wish.servers] == ["only", "y"]
    assert [[one.tokens for one in runs] for runs in found[2]] == [[18, 18], [18, 18]]
    assert [[one.tokens for one in runs] for runs in found[1]] == [[9, 9], [9, 9]]
    order = [one["model"] for one in asked]
    assert order[:12:2] == ["only", "y", "y", "only", "only", "y"]
    assert order[12:] == ["only", "y", "y", "only", "only", "y"]
    assert [one["key"] for one in asked[:3]] == ["Bearer ck-1", "Bearer ck-1", None]
    assert all(one["max_tokens"] == 16 and one["stream"] for one in asked)
    # No server has seen a beginning before: each asks for a text only once.
    texts = [one["messages"][0]["content"] for one in asked if one["model"] == "y"]
    assert len(set(texts)) == len(texts) == 9
    assert told[-1] == "one chat: round 2 of 2"


async def test_prompts_are_as_long_as_wished_by_the_first_servers_count() -> None:
    asked: list[dict] = []
    async with server(streaming(asked, usage=True)) as url:
        wish = Wish(Server(url), prompt_tokens=300, rounds=1)
        _, found = await asking.measure(wish)
    assert found[1][0][0].prompt_tokens == pytest.approx(300, abs=2)
    assert asked[0]["max_tokens"] == 1


async def test_a_server_that_counts_no_prompt_is_asked_for_no_length() -> None:
    async with server(streaming([], usage=False)) as url:
        with pytest.raises(PeerError, match="does not say how many tokens a prompt has"):
            await asking.measure(Wish(Server(url), prompt_tokens=300))


async def test_the_model_of_the_same_name_is_taken_at_others() -> None:
    answers = streaming([], usage=True)
    async with server(answers) as ours, server(answers, ("x", "only")) as theirs:
        wish, _ = await asking.measure(Wish(Server(ours), (Server(theirs),), rounds=1))
    assert wish.others[0].model == "only"


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
async def test_pieces_are_counted_where_a_server_does_not_say_how_many_tokens(field: str) -> None:
    answers = streaming([], usage=False, field=field)
    async with server(answers) as url:
        _, found = await asking.measure(Wish(Server(url), rounds=1))
    assert found[1][0][0].tokens == 5


async def test_several_models_have_to_be_told_apart() -> None:
    async with server(streaming([], usage=True), ("a", "b")) as url:
        with pytest.raises(UsageError, match=r"has 2 models: a, b"):
            await asking.measure(Wish(Server(url)))


async def test_a_refusal_is_told_with_what_the_server_said() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": "no such model"}, status=404)

    async with server(refuse) as url:
        with pytest.raises(PeerError, match=r"answered 404: .*no such model"):
            await asking.measure(Wish(Server(url, "m")))


async def test_an_error_in_the_stream_and_an_answer_of_nothing_are_told() -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(body=b'data: {"error": {"message": "out of memory"}}\n\n')

    async def empty(_: web.Request) -> web.Response:
        return web.Response(body=b"data: [DONE]\n\n")

    for handler, words in ((broken, "broke off: .*out of memory"), (empty, "without a token")):
        async with server(handler) as url:
            with pytest.raises(PeerError, match=words):
                await asking.measure(Wish(Server(url, "m")))


async def test_a_server_that_is_not_there_is_named() -> None:
    async with server(streaming([], usage=True)) as url:
        pass
    with pytest.raises(PeerError, match=r"http://127.0.0.1:\d+/v1/models cannot be asked"):
        await asking.measure(Wish(Server(url)))
