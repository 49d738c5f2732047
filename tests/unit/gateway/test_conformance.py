"""What schemathesis finds when it asks for everything that is described.

Behind the gateway are heads of the mesh, but for their models: one that chats, one for embeddings,
one for ranks. Data that fits the description and data that does not: no 5xx, and no answer that the
description has not. Streams it cannot read, so that their pieces are checked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import cache
from itertools import count
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from agent.engine.serve import embeddings
from agent.engine.serve.app import make_app as make_head
from gateway.dialects import sse
from gateway.openapi.document import document
from gateway.openapi.words import EVENTS, LINES
from gateway.routing import Replica
from gateway.wishes import DEADLINE_MS

pytestmark = pytest.mark.slow

CHATS, EMBEDS, RANKS = "covey-mini", "covey-embed", "covey-rank"
# Which model is meant for a request, by its schema; all others are for the one that chats.
MADE_FOR = {
    "EmbeddingsRequest": EMBEDS, "OllamaEmbedRequest": EMBEDS, "OllamaEmbeddingsRequest": EMBEDS,
    "RerankRequest": RANKS,
}  # fmt: skip
PARTS_OF_REQUESTS = frozenset(
    {"ChatPart", "ChatMessage", "Tool", "ResponsePart", "ResponseItem", "MessageText",
     "MessageTurn", "OllamaMessage"}
)  # fmt: skip
# Of each kind of data, for each operation.
EXAMPLES = 12
ANSWER_TIMEOUT_S = 60
# It knows tools, so that they are no reason to refuse.
TEMPLATE = (
    "{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
CHECKS = ["status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance"]  # fmt: skip


def described() -> dict[str, Any]:
    """Return the description with what a head in a test can serve, so that many answers are 200.

    Names are those of the models that there are (others are only ever unknown), numbers and lists
    are small, and no conversation ends with the assistant's word.
    """
    # As it is served: in the data, schemas share what they have in common.
    known: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document("1")))
    schemas = known["components"]["schemas"]
    for name, schema in schemas.items():
        if name.endswith("Request") or name in PARTS_OF_REQUESTS:
            _small(schema)
            schema["additionalProperties"] = True
        if name.endswith("Request"):
            schema["properties"]["model"] = {"enum": [MADE_FOR.get(name, CHATS)]}
            schema["required"] = sorted({*schema.get("required", ()), "model"})
    # Without these, Ollama's requests only look for the model.
    for name, field, least in (
        ("OllamaChatRequest", "messages", "minItems"),
        ("OllamaGenerateRequest", "prompt", "minLength"),
    ):
        properties = schemas[name]["properties"]
        properties[field] = properties[field]["anyOf"][0] | {least: 1}
        schemas[name]["required"].append(field)
    for name in ("MessageRequest", "MessageCountRequest"):
        schemas[name]["properties"]["messages"]["items"] = schemas["MessageTurn"]["anyOf"][0]
    # A head that has been asked for much at once may well need a while.
    known["components"]["parameters"]["Deadline"]["schema"]["minimum"] = 1000 * ANSWER_TIMEOUT_S
    [parameter] = known["paths"]["/v1/models/{id}"]["get"]["parameters"]
    parameter["schema"] = {"enum": [CHATS, "covey/none"]}
    return known


def _small(schema: Any) -> None:
    """Bound what is drawn for a schema: it would be most of the time that this takes."""
    if isinstance(schema, list):
        for inner in schema:
            _small(inner)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "integer":
        least, most = schema.get("minimum", 0), schema.get("maximum", 1)
        schema.clear()
        schema["enum"] = [value for value in (0, 1, 3, 72) if least <= value <= most]
    elif schema.get("type") == "array":
        schema.setdefault("maxItems", 2)
    elif schema.get("additionalProperties") is True and schema["properties"]:
        schema["additionalProperties"] = False
    for inner in list(schema.values()):
        _small(inner)


DESCRIBED = described()
OPERATIONS = [
    (path, method)
    for path, item in DESCRIBED["paths"].items()
    for method in item
    if method != "parameters"
]


# All that can be streamed: it is, every other time.
STREAMS = frozenset(
    path
    for path, method in OPERATIONS
    if len(DESCRIBED["paths"][path][method]["responses"].get("200", {}).get("content", ())) > 1
)


class Encoder:
    """A model for vectors or ranks of any text, as `agent.engine.embedding` has it."""

    def __init__(self, name: str, purpose: Any) -> None:
        self.name, self.purpose = name, purpose
        self.context, self.created, self.width = 4096, 1_700_000_000, 3

    def tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def pair(self, query: str, document: str) -> tuple[int, ...]:
        return (0, *(query + document).encode())

    def check(self, ids: Sequence[int]) -> None:
        pass

    def state(self) -> tuple[Any, str]:
        return "ready", ""

    async def encode(self, texts: Sequence[Sequence[int]]) -> Any:
        return np.array([[len(text)] * self.width for text in texts], np.float32)


async def head_of(app: web.Application, name: str, runners: list[web.AppRunner]) -> Replica:
    """Serve a head and return what the agent says of it."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    runners.append(runner)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return Replica(name, f"http://127.0.0.1:{runner.addresses[0][1]}", "mesh", (name,), 4096)


@pytest.fixture
async def url(scripted: Any, gateway: Any, listed: Any, runners: list[web.AppRunner]) -> str:
    model = scripted([b"Hi", b" there"])
    model.context, model.chat_template = 4096, TEMPLATE
    apps = {
        CHATS: make_head(model),
        EMBEDS: embeddings.make_app(Encoder(EMBEDS, "embeddings")),
        RANKS: embeddings.make_app(Encoder(RANKS, "ranks")),
    }
    agent = listed([await head_of(app, name, runners) for name, app in apps.items()])
    agent.answers[("GET", "/v1/shelf")] = {"kept": [], "known": [], "workers": []}
    address: str = await gateway(source=agent)
    return address


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
async def test_answers_are_as_described(url: str, path: str, method: str) -> None:
    # It waits for each answer, while heads and gateway run here.
    await asyncio.to_thread(ask_all, url, path, method)


@cache
def read() -> Any:
    """Have schemathesis read the description, once: what it learns of a schema it keeps."""
    import schemathesis
    from schemathesis.checks import load_all_checks

    load_all_checks()
    return schemathesis.openapi.from_dict(DESCRIBED)


def ask_all(url: str, path: str, method: str) -> None:
    """Ask one operation with data that fits and with data that does not."""
    import requests
    import schemathesis  # takes a second that no other test has to wait
    from schemathesis.checks import CHECKS as KNOWN

    operation = read()[path][method]
    checks = KNOWN.get_by_names(CHECKS)
    well = KNOWN.get_by_names(["not_a_server_error"])
    item = DESCRIBED["paths"][path]
    asks = {"parameters", "requestBody"} & (item.keys() | item[method].keys())
    with requests.Session() as session:
        turn = count()

        def ask(case: Any) -> None:
            if path in STREAMS and isinstance(case.body, dict):
                case.body["stream"] = next(turn) % 2 == 0
            answer = case.call(base_url=url, session=session, timeout=ANSWER_TIMEOUT_S)
            # Who gives no time gets no answer: 503 and 504 are what a deadline is for.
            timed = DEADLINE_MS in (case.headers or {})
            case.validate_response(answer, checks=checks if timed else [*checks, *well])
            check_pieces(path, answer)

        modes = schemathesis.GenerationMode
        # Where nothing is asked, nothing about it can be wrong.
        for mode in (modes.POSITIVE, modes.NEGATIVE) if asks else (modes.POSITIVE,):
            setting = settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            with suppress(Unsatisfiable) if mode is modes.NEGATIVE else nullcontext():
                # Any word is a name, so of a path with a name in it nothing can be wrong.
                setting(given(case=operation.as_strategy(generation_mode=mode))(ask))()


def check_pieces(path: str, answer: Any) -> None:
    """Hold the pieces of a stream against what is said of them."""
    import jsonschema_rs

    # What leads elsewhere has none.
    media = answer.headers.get("content-type", [""])[0].partition(";")[0]
    if answer.status_code != 200 or media not in (EVENTS, LINES):
        return
    schema = DESCRIBED["paths"][path]["post"]["responses"]["200"]["content"][media]["x-covey-piece"]
    validator = jsonschema_rs.validator_for({**schema, "components": DESCRIBED["components"]})
    if media == LINES:
        pieces = answer.content.splitlines()
    else:
        told = sse.Parser().push(answer.content)
        pieces = [item.data for item in told if isinstance(item, sse.Event)]
    assert pieces
    for piece in pieces:
        if piece != b"[DONE]":
            validator.validate(msgspec.json.decode(piece))
