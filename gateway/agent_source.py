"""The heads of the mesh, as the local agent knows them, and what the dashboard asks of it.

The one module of the gateway that imports the agent's client. Used by `watch.py` and `dashboard/`.
Fields that this version does not know are accepted, since agent and gateway are upgraded apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from agent.client import AgentClient, CoveyError, default_socket
from gateway.errors import ApiError, NotRunning
from gateway.routing import Replica

__all__ = ["AgentSource", "default_socket"]

# Names in the mesh are DNS labels; anything else would not do as a header's value.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class _Entry(msgspec.Struct, frozen=True):
    model: str
    url: str
    name: str
    context: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    replicas: list[_Entry]
    deployed: list[str] = []


class AgentSource:
    """Asks the agent on `socket`. Make it inside a running event loop and close it."""

    def __init__(self, socket: Path) -> None:
        self._client = AgentClient(socket)
        self._deployed: frozenset[str] = frozenset()

    async def replicas(self) -> list[Replica]:
        """Return the heads that the mesh announces; raises NotRunning when the agent cannot say."""
        try:
            answer = msgspec.convert(await self._client.get("/v1/replicas"), _Answer)
        except CoveyError as error:
            raise NotRunning(error.message, hint=error.hint) from error
        except msgspec.ValidationError as error:
            raise NotRunning(
                f"the agent's list of replicas is not understood: {error}",
                hint="Agent and gateway must be of the same release.",
            ) from error
        self._deployed = frozenset(answer.deployed)
        return [
            Replica(
                name=_NOT_IN_NAMES.sub("-", entry.name) or "unnamed",
                url=entry.url.rstrip("/"),
                source="mesh",
                models=(entry.model,),
                context=entry.context,
            )
            for entry in answer.replicas
        ]

    def deployed(self) -> frozenset[str]:
        """Return the models that the mesh is to run, by the last answer of the agent."""
        return self._deployed

    async def call(self, method: str, path: str, body: Any, timeout_s: float) -> Any:
        """Return what the agent answers on its local API; raises ApiError with its words.

        `timeout_s` bounds all but a DELETE, which is as quick as ever.
        """
        try:
            match method:
                case "POST":
                    return await self._client.post(path, body, timeout_s=timeout_s)
                case "DELETE":
                    return await self._client.delete(path)
                case _:
                    return await self._client.get(path, timeout_s=timeout_s)
        except CoveyError as error:
            raise ApiError(error.message, status=error.http_status, hint=error.hint) from error

    async def aclose(self) -> None:
        """Close the connection to the agent."""
        await self._client.aclose()
