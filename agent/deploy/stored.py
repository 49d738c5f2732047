"""What deployments need of the store of models: a model by its id, here or at any member.

`agent.models.provision` has it for a running agent; `NoStore` is for where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from agent.errors import EngineError
from agent.identity.keys import NodeId
from agent.models.fetch import Watch


class Stored(Protocol):
    """The stored models of this node and of the other members; ids in hex, layers [first, last)."""

    def path(self, model_id: str) -> Path | None:
        """Return the file of a model that is whole here."""

    async def named(self, text: str, *, mesh: bool = True) -> tuple[str, str] | None:
        """Return name and id of a model by its name, or by the beginning of its id or SHA-256.

        Those here come first, then, with `mesh`, those of other members; None where there is none.
        Raises ModelError where two have it.
        """

    async def holders(self, model_id: str) -> frozenset[NodeId]:
        """Return which other members say now that all of a model is there."""

    async def header(self, model_id: str) -> Path:
        """Return a file that has at least the model's header, fetched if need be.

        Raises CoveyError.
        """

    async def whole(self, model_id: str, name: str, watch: Watch) -> Path:
        """Return the file of a model, fetched into the store as `name` if it is not here.

        Raises CoveyError.
        """

    async def part(
        self, model_id: str, span: tuple[int, int], destination: Path, watch: Watch
    ) -> object:
        """Write layers of a model as a part, fetched if need be; raises CoveyError."""


class NoStore:
    """A node without a store."""

    def path(self, model_id: str) -> Path | None:
        """Nothing is here."""
        return None

    async def named(self, text: str, *, mesh: bool = True) -> tuple[str, str] | None:
        """Nothing has a name."""
        return None

    async def holders(self, model_id: str) -> frozenset[NodeId]:
        """Nobody can be asked."""
        return frozenset()

    async def header(self, model_id: str) -> Path:
        """Nothing can be fetched."""
        raise _none()

    async def whole(self, model_id: str, name: str, watch: Watch) -> Path:
        """Nothing can be fetched."""
        raise _none()

    async def part(
        self, model_id: str, span: tuple[int, int], destination: Path, watch: Watch
    ) -> object:
        """Nothing can be fetched."""
        raise _none()


def _none() -> EngineError:
    return EngineError("this node has no store of models to take one from")
