"""A request on its way to a replica, and an attempt that failed. For `proxy.py`, `upstream.py`.

No I/O of its own; the client's request is carried along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiohttp import web

from gateway.dialects.translation import Translation
from gateway.routing import Need, Replica


@dataclass(frozen=True)
class Ask:
    """A request as it is forwarded, what it needs, and until when its first byte has to be there.

    `until` is on the clock of time.monotonic, and may be infinite; `translation` is there for one
    in a dialect, and for one attempt only.
    """

    request: web.Request
    body: bytes
    need: Need
    until: float = math.inf
    priority: int = 0
    translation: Translation | None = None

    @property
    def model(self) -> str:
        """The model's name, as the body has it."""
        return self.need.model


class AttemptFailedError(Exception):
    """Nothing has reached the client yet; `answer` is the replica's own error, if it gave one.

    `sent`: the request may have reached it.
    """

    def __init__(
        self, replica: Replica, reason: str, answer: web.Response | None = None, *,
        sent: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.replica = replica
        self.reason = reason
        self.answer = answer
        self.sent = sent
