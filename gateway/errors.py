"""Every error of the gateway that a person or a client can meet, and OpenAI's form for them.

GatewayError                exit
├── UsageFault                 2   a flag, an address or the configuration file makes no sense
├── EnvironmentFault           5   this machine: a port, a socket, a file
├── NotRunning                10   no gateway answers (status), or no agent does (serve)
└── ApiError                   -   a request that cannot be served; goes to the client

The numbers are those of the agent's errors, so that scripts need one table. A core.
"""

from __future__ import annotations

from typing import Any


class GatewayError(Exception):
    """A fault with a message and a hint that are fit for a person; never raised itself."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _printable(message)
        self.hint = _printable(hint)
        super().__init__(self.message)

    def line(self) -> str:
        """Return message and hint as one line."""
        return f"{self.message.rstrip('.')}. {self.hint}".strip()


def _printable(text: str) -> str:
    """Return `text` with a space for what no terminal should get: it may repeat others' words."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


class UsageFault(GatewayError):
    """What was asked for makes no sense."""

    exit_code = 2


class EnvironmentFault(GatewayError):
    """This machine lacks something: a free port, a socket, a readable file."""

    exit_code = 5


class NotRunning(GatewayError):
    """Nobody answers on a socket or an address."""

    exit_code = 10


class ApiError(GatewayError):
    """A request that the gateway answers itself, with `status` and OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self._reason = reason

    @property
    def type(self) -> str:
        """OpenAI's kind of error."""
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def kind(self) -> str:
        """The most that OpenAI has a word for: the code, or else the type."""
        return self.code or self.type

    @property
    def reason(self) -> str:
        """A word for metrics and logs, one of few: why, or the code, or else the status."""
        return self._reason or self.code or str(self.status)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {
            "error": {
                "message": self.line(),
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }
