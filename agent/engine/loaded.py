"""The llama.cpp side of an engine, and how it takes its place in a ring.

For `process.py` and `head_process.py`. Imported before llama.cpp is proven; it loads it only when
something is to be loaded.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.engine.calibrate import measure
from agent.engine.channel import Channel
from agent.engine.cut import CutOrigin, origin
from agent.engine.frames import Limits
from agent.engine.gguf_file import GgufFile
from agent.engine.join import Dialled, Interrupted, Listener, Patience
from agent.engine.link import Inlet, Membership, Outlet
from agent.engine.means import Means
from agent.engine.spec import EngineSpec
from agent.errors import ModelError

if TYPE_CHECKING:
    from agent.engine.draft_model import DraftModel
    from agent.engine.llama import Context, ContextLimits, Weights
    from agent.engine.rpc_library import Spread

log = logging.getLogger(__name__)


class Loaded:
    """The llama.cpp side of an engine: weights and contexts of its file or files."""

    def __init__(self, spec: EngineSpec, found: Means, spread: Spread | None = None) -> None:
        started = time.monotonic()
        self.means = found
        paths = [Path(name) for name in spec.files]
        self.origins: list[CutOrigin | None] = []
        for path in paths:
            with GgufFile(path) as file:  # a damaged file ends here, in one clear line
                self.origins.append(origin(file))

        self.weights: list[Weights] = []
        self.contexts: list[Context] = []
        self.draft: DraftModel | None = None
        try:
            self._load(spec, paths, spread)
        except BaseException:
            self.close()
            raise
        self.load_s = time.monotonic() - started

    def _load(self, spec: EngineSpec, paths: Sequence[Path], spread: Spread | None) -> None:
        from agent.engine.llama import Context, Weights

        for index, path in enumerate(paths):
            weights = Weights(
                path, use_extra_bufts=self.means.use_extra_bufts, gpu_layers=self.means.gpu_layers,
                arrange=spread.arrange if spread else lambda _: None,
            )  # fmt: skip
            keeps_rows = spec.role == "stage" or (spec.role == "head" and index == 0)
            self.weights.append(weights)
            self.contexts.append(
                Context(weights, self._limits(spec, weights), keeps_rows=keeps_rows)
            )
        if spec.draft_file:
            self.draft = self._draft(spec)

    def close(self) -> None:
        """Free it all; harmless when done twice. Nobody may use it any more."""
        if self.draft is not None:
            self.draft.close()
            self.draft.context.weights.close()
        for context in self.contexts:
            context.close()
        for weights in self.weights:
            weights.close()

    def _draft(self, spec: EngineSpec) -> DraftModel:
        from agent.engine.draft_loading import load_draft

        limits = replace(self.contexts[-1].limits, n_seq=spec.slots)
        return load_draft(
            Path(spec.draft_file), self.weights[-1], spec.model_name, limits,
            use_extra_bufts=self.means.use_extra_bufts, gpu_layers=self.means.gpu_layers,
        )  # fmt: skip

    def _limits(self, spec: EngineSpec, weights: Weights) -> ContextLimits:
        from agent.engine.llama import CPU_GRAPH_ROWS, ContextLimits

        n_ctx = spec.n_ctx or weights.train_context
        by_cpu = not self.means.gpu_layers
        return ContextLimits(
            n_ctx, min(spec.n_batch, n_ctx), spec.sequences, self.means.threads,
            spec.flash_attention, CPU_GRAPH_ROWS if by_cpu else 0,
            # Who wants answers that do not depend on others' gets neither.
            rows_apart=by_cpu and spec.flash_attention,
        )  # fmt: skip

    def member(self, spec: EngineSpec) -> Membership:
        """Return this engine's place in its ring; ModelError when its files are no parts of one."""
        first, last = self.origins[0], self.origins[-1]
        if first is None or last is None:
            raise ModelError(
                f"{Path(spec.files[0]).name} was not cut from a model.",
                hint="A ring takes parts that `agent` has cut.",
            )
        if first.model_sha256 != last.model_sha256:
            raise ModelError("the head's two parts were cut from different models.")
        if spec.role == "head" and (first.start != 0 or last.stop != last.layers):
            raise ModelError("the head needs the first and the last layers of the model.")
        context = self.contexts[0]
        limits = Limits(context.weights.n_embd, context.limits.n_batch, context.limits.n_seq)
        return Membership(
            bytes.fromhex(spec.ring),
            spec.epoch,
            spec.stage,
            spec.stages,
            limits,
            spec.rows,
            bytes.fromhex(first.model_sha256),
            spec.silence_s,
            spec.least_silence_s,
        )

    def boundaries(self) -> tuple[int, int]:
        """Return the layer with which frames come in, and that with which they leave."""
        first, last = self.origins[0], self.origins[-1]
        if first is None or last is None:
            raise ValueError("only parts have boundaries")
        return last.start, first.stop


def model_of(path: Path) -> str:
    """Return the SHA-256 (hex) of the header of the model that a file is, or is a part of.

    Raises ModelError for a file that is none.
    """
    with GgufFile(path) as file:
        found = origin(file)
        return file.header_sha256 if found is None else found.model_sha256


def join(
    spec: EngineSpec, loaded: Loaded, member: Membership, listener: Listener, channel: Channel,
    interrupted: Callable[[], bool],
) -> tuple[Inlet, Outlet] | None:  # fmt: skip
    """Meet both neighbours; None when it was `interrupted` before. The listener is closed then."""
    entering, leaving = loaded.boundaries()
    dialled: Dialled | None = None
    inlet: Inlet | None = None
    try:
        while (successor := channel.successor()) is None:
            channel.wait(1.0)
            if interrupted():
                return None
        patience = Patience(time.monotonic() + spec.join_timeout_s, interrupted)
        # First dial without waiting for the answer, then answer: in a ring everybody waits else.
        dialled = Dialled(member, leaving, spec.listen, successor, patience)
        inlet = listener.accept(member, entering, spec.predecessor, patience)
        outlet = dialled.finish(patience)
        outlet.ping()
        if member.row_type is None:
            # However late the neighbours came, this takes its own few seconds.
            bandwidth = measure(inlet, outlet, replace(patience, deadline=math.inf))
            outlet.types = replace(outlet.types, bandwidth=bandwidth)
    except BaseException as error:
        if dialled is not None:
            dialled.close()
        if inlet is not None:
            inlet.close()
        if isinstance(error, Interrupted):
            return None
        raise
    finally:
        listener.close()
    log.info("rows go to %s as %s", outlet.name, outlet.types)
    return inlet, outlet
