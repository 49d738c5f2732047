"""What a model needs of the nodes: the context it gets, bytes, and whether it stays in one piece.

For `build.py`, which has placement (`agent.placement.plan`) find the nodes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.engine.cuttable import CutRule, check_cuttable, cut_rule
from agent.engine.gguf_file import GgufFile, ModelFacts
from agent.engine.purpose import ENCODER_CONTEXT, only_encodes
from agent.errors import ModelError
from agent.placement.inputs import OVERHEAD, Model

# Tokens, where nobody said: models are trained for 128 Ki and more, whose KV cache few nodes hold.
DEFAULT_CONTEXT = 8192
# ggml's scheduler takes 16 backends: RPC servers, and the head's own CPU.
RPC_NODES_MAX = 16
_RPC_HINT = "`--engine rpc` may spread it over several nodes."


def default_context(facts: ModelFacts) -> int:
    """Return how many tokens a model gets where nobody said."""
    most = DEFAULT_CONTEXT if facts.purpose == "text" else ENCODER_CONTEXT
    return min(facts.context, most)


def cuts_of(path: Path) -> CutRule | str:
    """Return where a model may be cut, or why it has to stay in one piece, as a clause."""
    with GgufFile(path) as model:
        if model.purpose != "text":
            return f"{model.name} is for {model.purpose}, and computes each text in one piece"
        try:
            check_cuttable(model)
        except ModelError as error:
            return error.message.rstrip(".")
        return cut_rule(model)


def spread_of(path: Path) -> CutRule | str:
    """Return that llama.cpp's RPC may spread a model, at any layer, or why not, as a clause."""
    with GgufFile(path) as model:
        if model.purpose != "text":
            return f"{model.name} is for {model.purpose}, and computes each text in one piece"
    return CutRule()


def model_needs(
    facts: ModelFacts, context: int, cuts: CutRule | str, *, in_line: bool = False
) -> Model:
    """Return what placement needs to know of a model that keeps `context` tokens.

    `in_line`: llama.cpp's RPC spreads it, and `cuts` is that of `spread_of`. A row is counted as
    f32, the widest type in which rows travel.
    """
    # A tied model's output matrix is its embedding, but the head's two parts each hold a copy.
    head_bytes = facts.embedding_bytes + facts.output_bytes + facts.shared_bytes
    cache, attended = facts.kv_bytes_per_token, facts.attended_per_token
    if facts.purpose != "text":
        # Nothing is kept of a text. A batch has a mask, and llama.cpp's room for what it never asks
        # for: a number for each word at each token, computed as well where a model could make text.
        words = facts.n_vocab * (1 if only_encodes(facts.architecture) else 2)
        cache, attended = 0, 0
        head_bytes += 4 * context * (context + words)
    model = Model(
        facts.layer_bytes, head_bytes, kv_bytes=cache, output_bytes=facts.output_bytes,
        row_bytes=4 * facts.n_embd, attended=attended,
    )  # fmt: skip
    if isinstance(cuts, str):
        hint = "" if in_line or facts.purpose != "text" else _RPC_HINT
        return replace(model, uncut=cuts, hint=hint)
    if in_line:
        return replace(model, in_line=True, nodes_max=RPC_NODES_MAX)
    return replace(model, period=cuts.period, allows=cuts.allows)


def whole_bytes(needs: Model, context: int) -> int:
    """Return what all of a model takes in memory, with a cache for `context` tokens."""
    cache = len(needs.layer_bytes) * needs.kv_bytes * context
    return int((sum(needs.layer_bytes) + cache + needs.head_bytes) * OVERHEAD)


def draft_bytes(facts: ModelFacts, context: int) -> int:
    """Return what a draft model takes on the head: all of it, and as many tokens as the model."""
    weights = sum(facts.layer_bytes) + facts.embedding_bytes + facts.shared_bytes
    output = 0 if facts.tied else facts.output_bytes
    return weights + output + len(facts.layer_bytes) * facts.kv_bytes_per_token * context


def with_draft(needs: Model, draft: int) -> Model:
    """Return the needs of a model beside whose head there is a draft model of so many bytes."""
    return replace(needs, head_bytes=needs.head_bytes + draft)
