"""What clients ask engines and gateways, what servers answer, and what processes say to each other.

Targets for `decoders.py`. Answers of replicas come from members' engines and from outside servers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy
from target import Target

from agent.comparing import asking
from agent.engine.serve import tokens
from agent.engine.spec import EngineSpec
from agent.http import hosts
from agent.unreadable import UNREADABLE
from gateway import browsers, config, headers, modalities, otlp, proxy, tracing, watch, wishes
from gateway.dialects import sse
from gateway.dialects.port import Refused
from gateway.dialects.served import DIALECTS, by_name
from gateway.dialects.translation import Garbled, Translation
from gateway.errors import ApiError, GatewayError
from gateway.keys import guard
from gateway.usage import Meter

MESSAGES = b'"messages":[{"role":"system","content":"s"},{"role":"user","content":"hi"}]'
TOOL = b'{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}'
ANTHROPIC = (
    b'{"model":"m","max_tokens":5,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user",'
    b'"content":[{"type":"text","text":"hi"},{"type":"image","source":{"type":"base64",'
    b'"media_type":"image/png","data":"iVBOR"}},{"type":"tool_result","tool_use_id":"t",'
    b'"content":"r","is_error":true}]},{"role":"assistant","content":[{"type":"tool_use","id":"t",'
    b'"name":"f","input":{"a":1}}]},{"role":"user","content":"x"}],"tools":[{"name":"f",'
    b'"input_schema":{"type":"object"}}],"tool_choice":{"type":"tool","name":"f"},"stream":true,'
    b'"thinking":{"type":"enabled"},"output_config":{"format":{"type":"json_schema","schema":{}}}}'
)
RESPONSES = (
    b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"hi"},'
    b'{"type":"input_image","image_url":"data:image/png;base64,iVBOR"}]},{"type":"function_call",'
    b'"call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c",'
    b'"output":"r"}],"tools":[{"type":"function","name":"f","parameters":{}}],"stream":true,'
    b'"text":{"format":{"type":"text"}},"reasoning":{"effort":"low"}}'
)
OLLAMA = (
    b'{"model":"m","messages":[{"role":"user","content":"hi","images":["iVBOR"]},{"role":'
    b'"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool",'
    b'"tool_name":"f","content":"r"}],"options":{"num_predict":5,"stop":["a"],"temperature":0.5},'
    b'"format":{"type":"object"},"think":"low","tools":[%b],"logprobs":true}' % TOOL
)
ASKED: dict[str, tuple[bytes, ...]] = {
    "/v1/messages": (ANTHROPIC,),
    "/v1/messages/count_tokens": (b'{"model":"m",%b}' % MESSAGES,),
    "/v1/responses": (RESPONSES, b'{"model":"m","input":"hi"}'),
    "/api/chat": (OLLAMA, b'{"model":"m"}'),
    "/api/generate": (
        b'{"model":"m","prompt":"hi","system":"s","raw":false,"stream":false}',
        b'{"model":"m","prompt":"hi","suffix":"x","raw":true}',
    ),
    "/api/embed": (b'{"model":"m","input":["a","b"],"dimensions":4}',),
    "/api/embeddings": (b'{"model":"m","prompt":"a"}',),
    "/generate": (b'{"prompt":"hi","max_tokens":3,"stream":true}',),
    "/tokenize": (b'{"content":"hi","with_pieces":true}',),
    "/detokenize": (b'{"tokens":[1,2]}',),
}
CHUNKS = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"a"},'
    b'"finish_reason":null}]}\n\n: ping\n\ndata: {"choices":[{"delta":{"tool_calls":[{"index":0,'
    b'"id":"t","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
    b'event: x\r\ndata: {"error":{"message":"no","type":"server_error","code":5}}\r\n\r\n',
)
ANSWERS = (
    b'{"id":"c","model":"m","choices":[{"index":0,"message":{"content":"a","tool_calls":[{"id":"t",'
    b'"function":{"name":"f","arguments":"{}"}}]},"logprobs":{"content":[{"token":"a","logprob":'
    b'-1,"bytes":[97],"top_logprobs":[]}]},"finish_reason":"stop","stop_reason":"x"}],"usage":'
    b'{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}',
    b'{"choices":[{"text":"a","finish_reason":"length"}],"usage":{"prompt_tokens":3}}',
    b'{"data":[{"embedding":[0.5,1],"index":0},{"embedding":[1],"index":1}]}',
    b'{"tokens":[{"id":1,"piece":"a"}]}', b'{"error":{"message":"no","code":"busy"}}',
)  # fmt: skip
CONFIG = b"""
listen = "[::1]:8088"
vision = ["ollama"]
hedge_percent = 1.5
otlp_endpoint = "http://127.0.0.1:4318"
[replicas]
ollama = "http://127.0.0.1:11434/v1"
"""
HEADERS = (
    b"host: shed:8088\norigin: http://shed:8088\nsec-fetch-site: same-origin\n"
    b"x-covey-deadline-ms: 500\nx-covey-priority: -3\nx-covey-session: s\nuser-agent: x\n"
    b"connection: close, x-a\nx-a: 1\nx-covey-load: 7\nx-covey-strategy: round_robin\n"
    b"traceparent: 00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\ntracestate: a=1,b=2\n"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SPEC = EngineSpec(
    role="stage", files=("a",), ring="00" * 16, epoch=3, stage=1, stages=2,
    listen="fd00::1", predecessor="fd00::2",
)  # fmt: skip


def targets() -> list[Target]:
    """Return them, with samples."""
    return [
        *(asked(path, dialect) for path, dialect in (DIALECTS | by_name(lambda: ("m",))).items()),
        *(answered(path, dialect) for path, dialect in (DIALECTS | by_name(lambda: ("m",))).items()
          if path in ASKED),
        Target("events of a stream", pieces(lambda: sse.Parser().push), CHUNKS, ()),
        Target("counts of tokens", counted, (*CHUNKS, *ANSWERS), ()),
        Target("request to pass on", ask, (
            b'{"model":"m","stream":true,"max_tokens":5,"tools":[%b],%b}' % (TOOL, MESSAGES),
            b'{"model":"m","prompt":"hi","user":"u"}'), (Unread, ApiError)),
        Target("request's cost", lambda raw: guard._completion(guard._fields(raw)),
               (b'{"model":"m","n":2,"max_tokens":5,"options":{"num_predict":4}}',), ()),
        Target("headers", head, (HEADERS,), (ApiError,)),
        Target("server's models", modalities.seeing, (
            b'{"data":[{"id":"m","capabilities":["vision"],"architecture":{"input_modalities":'
            b'["image"]}}],"models":[{"name":"n","capabilities":{"vision":true}}]}',), ()),
        Target("server's health", watch._health, (b'{"status":"ok","running":3}',), ()),
        Target("collector's answer", otlp._rejected,
               (b'{"partialSuccess":{"rejectedSpans":"3"}}',), ()),
        Target("gateway's configuration",
               lambda raw: config.load(raw.decode(errors="replace"), "gateway.toml", {}), (CONFIG,),
               (GatewayError,)),
        Target("text to tokenize", lambda raw: tokens.parse_tokenize(raw, "m"), (
            b'{"content":"hi","add_special":true,"with_pieces":false}',
            b'{"model":"m",%b}' % MESSAGES)),
        Target("tokens to name", lambda raw: tokens.parse_detokenize(raw, "m"),
               (b'{"tokens":[1,2]}',)),
        Target("another server's stream", lambda raw: asking.read(raw).has_text, (
            b'{"choices":[{"delta":{"content":"a","thinking":null}}],"usage":null}',
            b'{"error":{"message":"no"}}'), UNREADABLE),
        Target("engine's spec", lambda raw: msgspec.json.decode(raw, type=EngineSpec).check(),
               (msgspec.json.encode(SPEC),), (*Target.refuses_with, *UNREADABLE)),
    ]  # fmt: skip


class Unread(Exception):
    """A body that the gateway refuses as no JSON object, or as one that names no model."""


def asked(path: str, dialect: Any) -> Target:
    """Return the target of a dialect's requests: whatever is not refused is asked of a replica."""

    def take(raw: bytes) -> None:
        made = Translation(dialect, raw, 0.0)
        fields = msgspec.json.decode(made.body)
        assert fields["model"] == made.model != ""

    return Target(f"{path} asked", take, ASKED[path], (Refused,))


def answered(path: str, dialect: Any) -> Target:
    """Return the target of replicas' answers to a dialect: they are translated, or told as broken.

    An answer in one piece that makes no sense is Garbled: another replica is asked.
    """

    def take(raw: bytes) -> None:
        for sample in ASKED[path]:
            whole = Translation(dialect, sample, 0.0)
            whole.error(500, raw)
            if not whole.streamed:
                with contextlib.suppress(Garbled, Refused):
                    whole.whole(raw)
                continue
            for at in range(0, len(raw), 40):
                whole.push(raw[at : at + 40])
            whole.close()
            assert whole.over

    return Target(f"{path} answered", take, (*CHUNKS, *ANSWERS), ())


def pieces(make: Callable[[], Callable[[bytes], object]]) -> Callable[[bytes], object]:
    """Return what gives bytes in pieces of seven."""

    def take(raw: bytes) -> None:
        push = make()
        for at in range(0, len(raw), 7):
            push(raw[at : at + 7])

    return take


def counted(raw: bytes) -> None:
    """Read off an answer what it cost, as it is and packed."""
    for encoding in ("", "gzip", "deflate"):
        meter = Meter()
        meter.begin(encoding)
        for at in range(0, len(raw), 100):
            meter.feed(raw[at : at + 100])
        found = meter.tokens()
        assert found is None or min(found.prompt, found.completion) >= 0
        assert meter.estimate() >= 0


def ask(raw: bytes) -> None:
    """Read of a request what routing looks at."""
    try:
        fields = proxy._decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unread from error
    if not isinstance(fields.model, str) or not fields.model:
        raise Unread
    wishes.wishes({}, "/v1/chat/completions", fields, modalities.shown(fields.messages))


def head(raw: bytes) -> None:
    """Read a request's headers, as aiohttp gives them: what is no UTF-8 as surrogates."""
    found: CIMultiDict[str] = CIMultiDict()
    for line in raw.decode(errors="surrogateescape").splitlines():
        name, _, value = line.partition(":")
        if _TOKEN.fullmatch(name):  # else aiohttp refuses the request
            found.add(name, value.strip())
    given = CIMultiDictProxy(found)
    trace = tracing.context(
        found.getall("traceparent", []), found.getall("tracestate", []), export=True,
        entropy=bytes,
    )  # fmt: skip
    for keyed in (True, False):
        for name, value in headers.of_request(given, trace, keyed=keyed).items():
            name.encode(), value.encode()
    headers.load(found)
    for changes in (True, False):
        browsers.foreign(found, changes=changes, shows=not changes)
    hosts.answered(found.getall("host", []), frozenset({"shed"}))
    wishes.client(found, "192.0.2.1")
    wishes.wishes(found, "/v1/chat/completions", wishes.Fields(model="m"))
