"""The client of the agent's local API: HTTP over its unix socket.

Used by the command line and by the gateway, which imports nothing else of the agent. The server
is `api.py`. Every call is bounded in time and raises the CoveyError that the agent raised.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from agent import places
from agent.errors import CoveyError, NotRunning, from_wire

# The local API answers from memory; what takes longer is polled for, so ten seconds means trouble.
CALL_TIMEOUT_S = 10.0


class AgentClient:
    """Calls one agent. Make it inside a running event loop and close it with `aclose`."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(socket_path)),
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
        )

    async def get(self, path: str, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Return the decoded answer of GET `path`."""
        return await self._call("GET", path, None, timeout_s)

    async def post(self, path: str, body: Any = None, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Return the decoded answer of POST `path` with `body` as JSON."""
        return await self._call("POST", path, body, timeout_s)

    async def delete(self, path: str) -> Any:
        """Return the decoded answer of DELETE `path`."""
        return await self._call("DELETE", path, None)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._session.close()

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _call(
        self, method: str, path: str, body: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        url = f"http://agent{path}"
        try:
            async with self._session.request(method, url, json=body, timeout=timeout) as response:
                answer = await response.json()
                if response.status >= 400:
                    raise from_wire(answer.get("error", {}))
                return answer
        except (aiohttp.ClientConnectorError, FileNotFoundError, ConnectionError) as error:
            if isinstance(error, PermissionError) or "Permission denied" in str(error):
                raise NotRunning(
                    f"the agent's socket {self._socket} is closed to this user",
                    hint="Run this as the user that runs the agent (root, for a service).",
                ) from None
            raise NotRunning(
                f"no agent is running on {self._socket}", hint="Start it with `agent up`."
            ) from None
        except TimeoutError as error:
            raise NotRunning(
                f"the agent on {self._socket} did not answer within {timeout_s:.0f} s",
                hint="`agent down` and `agent up` start it anew; its log tells more.",
            ) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise NotRunning(f"the agent on {self._socket} broke off: {error}") from error


def default_socket(environment: Mapping[str, str]) -> Path:
    """Return where the agent of this user listens, by its environment and defaults."""
    return Path(places.socket(
        environment.get("COVEY_NODE_SOCKET", ""), environment.get("COVEY_NODE_STATE_DIR", ""),
        environment, root=os.geteuid() == 0, home=str(Path.home()),
    ))  # fmt: skip


__all__ = ["AgentClient", "CoveyError", "NotRunning", "default_socket"]
