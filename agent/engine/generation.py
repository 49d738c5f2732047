"""What a model is to whoever asks it for text: the types between the ring and the HTTP server.

A core: types only, no llama.cpp, no sockets. `head.py` implements `Model` and `Generation`;
`agent.engine.serve` is written against them and knows nothing else of the engine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

ModelState = Literal["ready", "loading", "broken"]


SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"
]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the names and defaults are llama.cpp's.

    `temperature` 0 is greedy: the likeliest token after biases and penalties.
    `seed` None lets the engine choose one. `repeat_last_n` and `dry_penalty_last_n` count tokens;
    -1 is all of the context. `mirostat` 1 or 2 stands for all that comes between the biases and
    the temperature, as in llama.cpp. `logit_bias` holds (token id, added to its logit) pairs.
    `samplers` are applied in their order, those that are not named not at all.
    `grammar` is in GBNF, from its rule `root`; empty for none.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    min_keep: int = 0
    seed: int | None = None
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    samplers: tuple[SamplerName, ...] = SAMPLERS
    grammar: str = ""

    @property
    def takes_preparing(self) -> bool:
        """Whether `Model.prepare` may take long."""
        return bool(self.grammar) or self.dry_multiplier > 0.0 or self.ignore_eos


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt (token ids, at least one) and how far and how to go on from it.

    Where not all can run at once, those of a higher `priority` do. `logprobs` is how many of the
    likeliest tokens come with each token, None for not even its own probability. The control tokens
    in `written` have their text as their piece.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    priority: int = 0
    logprobs: int | None = None
    written: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Likely:
    """A token that could have come: its bytes (a control token's text), and its natural logprob."""

    piece: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """One generated token; `piece` is its raw bytes, which may end inside a UTF-8 character.

    An end-of-generation token is not delivered. Where asked for, `logprob` is the natural logarithm
    of the chance that the model itself gave it, before any sampler; `likely` are the likeliest.
    """

    id: int
    piece: bytes
    logprob: float | None = None
    likely: tuple[Likely, ...] = ()


class Finish(enum.Enum):
    """Why a generation ended: the model ended it, or `max_tokens` or the context was used up."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Timings:
    """What a generation cost: token counts, and wall seconds for the prompt and for the rest.

    `reused` of the prompt's tokens were in the caches already. `drafted` tokens were computed
    before they were certain, and `accepted` of them came true.
    """

    prompt_tokens: int
    prompt_s: float
    generated: int
    generate_s: float
    reused: int = 0
    drafted: int = 0
    accepted: int = 0


class Generation(Protocol):
    """A running answer: ask for its tokens until there are no more, and close it to stop it."""

    @property
    def finish(self) -> Finish:
        """Why it ended; only after the last token."""
        ...

    @property
    def timings(self) -> Timings:
        """What it has cost so far; final after the last token."""
        ...

    async def some(self, timeout_s: float) -> list[Token] | None:
        """Return the tokens that came since the last call, once there are any.

        An empty list when none came for `timeout_s`; None after the last one. Raises EngineError if
        the ring breaks.
        """
        ...

    async def aclose(self) -> None:
        """Cancel what is left and free the ring for the next request; may be called twice."""
        ...


class Served(Protocol):
    """What every loaded model has in common, whatever it is for."""

    @property
    def name(self) -> str:
        """What clients call the model."""
        ...

    @property
    def context(self) -> int:
        """How many tokens it takes: prompt and answer together, or one text."""
        ...

    @property
    def created(self) -> int:
        """When the model was loaded, in unix seconds."""
        ...

    def state(self) -> tuple[ModelState, str]:
        """Say whether requests can be served, and if not, why, in one line."""
        ...


class Model(Served, Protocol):
    """A loaded model that makes text, whole or cut over a ring, as the HTTP server sees it."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template of the GGUF, if it has one."""
        ...

    @property
    def bos(self) -> str:
        """The text of the beginning-of-sequence token; empty where there is none."""
        ...

    @property
    def eos(self) -> str:
        """The text of the end-of-sequence token; empty where there is none."""
        ...

    def tokenize(self, text: str, *, special: bool, around: bool = True) -> tuple[int, ...]:
        """Return the token ids of `text`, with the BOS that the model's metadata asks for.

        `special` parses control tokens such as `<|im_start|>` in the text; else they are text.
        `around` False leaves out all that the metadata asks for around a text.
        """
        ...

    def detokenize(self, ids: tuple[int, ...]) -> bytes:
        """Return the raw bytes that the tokens stand for; control tokens stand for nothing."""
        ...

    def labels(self, ids: tuple[int, ...]) -> list[bytes]:
        """Return the raw bytes of each token by itself, the text of a control token.

        Raises UsageError for an id that the model does not have.
        """
        ...

    def prepare(self, sampling: Sampling) -> None:
        """Make ready what takes long, from any thread, for a `generate` that comes soon.

        Raises UsageError for what cannot be used, such as a grammar that cannot be read.
        """
        ...

    def generate(self, request: GenerationRequest) -> Generation:
        """Begin an answer; it waits its turn. Raises EngineError when the ring is broken.

        Raises UsageError for an empty prompt or one that leaves no room in the context.
        """
        ...
