"""What an engine process is told and what it tells: the spec, commands and events (JSON lines).

A core: types only. Written by `supervisor.py` on the agent's side, read by `process.py`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.engine.frames import RowType, stage_name
from agent.engine.silence import LEAST_S, Known
from agent.errors import ConfigError

Role = Literal["whole", "head", "stage", "rpc-server"]
_ROW_TYPES = {"auto": None, "f32": RowType.F32, "f16": RowType.F16, "q8": RowType.Q8}
_FILES = {"whole": 1, "stage": 1, "head": 2, "rpc-server": 0}
RING_ID_BYTES = 16
# What answers that go on over another ring rely on.
_KEPT = ("model_name", "http_address", "http_port", "slots", "n_ctx", "drafts")
_WAYS = {True: "from", False: "to"}
# llama.cpp keeps 256 sequences at most.
SLOTS_MAX = 128


class RpcServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of llama.cpp's RPC servers: its node's name, where it listens, how many layers it gets.

    Its stage is its place in `EngineSpec.servers`, from 1.
    """

    name: str
    address: str
    port: int
    layers: int


class EngineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that an engine process needs to know; it is its first line of input.

    `files` are paths: the model (whole), the part (stage), or the first and the last part (head).
    `servers` get the last layers of a whole model, in order; the model is then a ring's head for
    them, and their `predecessor`.
    `ring` is 16 bytes in hex; `stages` counts the ring's processes with the head, which is stage 0.
    `listen` and `predecessor` are overlay addresses; the latter is the only one that may connect.
    `row_type` is how rows leave this stage; auto: by the bandwidth of its link.
    `http_address` empty means no HTTP server; port 0 lets the system choose one. `n_ctx` 0 is the
    model's own context, for all `slots` requests together that are served at once. `threads` 0
    is as many as were measured to be best, `gpu_layers` -1 all on the GPUs if there are any that
    pass the self-test, 0 none. `silence_s` is how long a stage may be
    silent on the worst of links, `least_silence_s` on one that was never late, and `join_timeout_s`
    how long the neighbours may take to come, once `connect` was said.
    `drafts` says whether guesses from what was said before fill the ring (batching.py), and
    `draft_file` is a draft model that makes more of them (draft_model.py), or empty.
    `links` is what is known of links to other nodes from before (silence.py), by overlay address.
    `cache` is a folder where the result of the self-test is kept; empty: it is not kept.
    `confined`: it gives up what it does not need before it opens a file (`enclose.py`). After that
    it can read its files and those in `later`, files or folders, which `regroup` may name.
    """

    role: Role
    files: tuple[str, ...]
    model_name: str = "model"
    n_ctx: int = 0
    n_batch: int = 512
    slots: int = 16
    threads: int = 0
    gpu_layers: int = 0
    flash_attention: bool = True
    row_type: Literal["auto", "f32", "f16", "q8"] = "auto"
    ring: str = ""
    epoch: int = 0
    stage: int = 0
    stages: int = 1
    listen: str = ""
    port: int = 0
    predecessor: str = ""
    http_address: str = ""
    http_port: int = 0
    silence_s: float = 30.0
    least_silence_s: float = LEAST_S
    join_timeout_s: float = 60.0
    drafts: Literal["ngrams", "none"] = "ngrams"
    draft_file: str = ""
    cache: str = ""
    confined: bool = True
    later: tuple[str, ...] = ()
    servers: tuple[RpcServer, ...] = ()
    links: dict[str, Known] = {}

    @property
    def rows(self) -> RowType | None:
        """The row type of this ring's frames, None: for each link by its bandwidth."""
        return _ROW_TYPES[self.row_type]

    @property
    def sequences(self) -> int:
        """How many sequences the caches have: one a request, and as many for prefixes."""
        return 2 * self.slots

    @property
    def title(self) -> str:
        """What messages call this engine."""
        if self.role == "rpc-server":
            return f"RPC server {self.stage}"
        return "the model" if self.role == "whole" else stage_name(self.stage)

    def check(self) -> None:
        """Raise ConfigError for a spec that makes no sense."""
        if len(self.files) != _FILES[self.role]:
            raise ConfigError(f"a {self.role} engine takes {_FILES[self.role]} file(s)")
        if self.n_batch < 1 or self.n_ctx < 0 or self.threads < 0:
            raise ConfigError("n_batch, n_ctx and threads must not be negative")
        if not 1 <= self.slots <= SLOTS_MAX:
            raise ConfigError(f"slots must be 1 to {SLOTS_MAX}, not {self.slots}")
        if min(self.silence_s, self.least_silence_s, self.join_timeout_s) <= 0:
            raise ConfigError("silence_s, least_silence_s and join_timeout_s must be above 0")
        if self.draft_file and (self.role not in ("head", "whole") or self.drafts == "none"):
            raise ConfigError("a draft model is for a head, or a whole model, that makes guesses")
        if self.servers and (self.role != "whole" or not self.listen):
            raise ConfigError("only a whole model with an address has RPC servers")
        if self.role == "whole" and not self.servers:
            return
        try:
            identity = bytes.fromhex(self.ring)
        except ValueError:
            identity = b""
        if len(identity) != RING_ID_BYTES:
            raise ConfigError(f"ring must be {RING_ID_BYTES} bytes in hex, not {self.ring!r}")
        if self.role == "whole":
            return
        if not self.listen or not self.predecessor:
            raise ConfigError("a stage needs the addresses `listen` and `predecessor`")
        if self.stages < 2 or not 0 <= self.stage < self.stages:
            raise ConfigError(f"stage {self.stage} of {self.stages} makes no ring")
        if (self.stage == 0) != (self.role == "head"):
            raise ConfigError("the head, and nothing else, is stage 0")

    def check_regroup(self, other: EngineSpec) -> None:
        """Raise ConfigError unless this engine's process can go over to `other`."""
        other.check()
        for spec in (self, other):
            if spec.role not in ("head", "whole") or spec.servers:
                raise ConfigError(f"a process cannot go over {_WAYS[spec is self]} {spec.title}")
        for name in _KEPT:
            if getattr(self, name) != getattr(other, name):
                raise ConfigError(
                    f"a process that goes over to another ring keeps its {name}:"
                    f" {getattr(self, name)!r}, not {getattr(other, name)!r}"
                )


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of input: connect to the successor (address, port), go over to another spec, or stop.

    `regroup` leaves the ring, if it is not broken already; what `connect` said before is void.
    `ping` is answered by `alive` at once, `tell` by `stats`.
    """

    connect: tuple[str, int] | None = None
    regroup: EngineSpec | None = None
    stop: bool = False
    ping: bool = False
    tell: bool = False


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line of output.

    `listening` (loaded; `port` for the predecessor, `http_port`), `ready` (serving), `failed` (did
    not start, or cannot regroup and is as it was) and `broken` (its ring is gone; a head waits for
    `regroup`) with `kind`, `message` and `hint` of the error and in `lost` the stage that is to
    blame, -1: unknown; `stats` with counts and seconds since it began; `heard` with what is known
    of its `links`; `alive`. `rows` says in which type rows leave a ready stage, and why; `runs_on`
    with what a loaded engine computes. `unconfined` has in `message` what it could not give up
    (`enclose.py`), and comes before it loads, if at all. `regroups` counts the commands of that
    name which had been taken when what is told came about.
    """

    event: Literal[
        "unconfined", "listening", "ready", "failed", "broken", "stats", "heard", "alive"
    ]
    port: int = 0
    http_port: int = 0
    load_s: float = 0.0
    use_extra_bufts: bool = True
    rows: str = ""
    runs_on: str = ""
    kind: str = ""
    message: str = ""
    hint: str = ""
    lost: int = -1
    regroups: int = 0
    stats: dict[str, float] = {}
    links: dict[str, Known] = {}
