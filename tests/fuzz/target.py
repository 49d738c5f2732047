"""What can be fuzzed: a decoder, genuine inputs for it, and what it may refuse them with.

    Target(name, decode, samples, refuses_with).takes(raw) → whether it read it

A decoder may refuse with the errors that its docstring names, and with nothing else, in little
time. The registry of all targets is `decoders.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.errors import CoveyError
from gateway.errors import GatewayError

# Of the processor's time, which others on the machine do not lengthen. The slowest decoder takes
# some milliseconds; what takes a thousand times as long has a loop that an input can lengthen.
SLOW_S = 5.0


@dataclass(frozen=True)
class Target:
    """A decoder, genuine inputs for it, and what it may raise."""

    name: str
    decode: Callable[[bytes], Any]
    samples: tuple[bytes, ...]
    refuses_with: tuple[type[Exception], ...] = (CoveyError,)

    def takes(self, raw: bytes) -> bool:
        """Feed it `raw`; say whether it read it, or refused it as it may.

        Raises AssertionError with the input for anything else, also for words that are no line fit
        for a terminal, and for what took SLOW_S.
        """
        began = time.process_time()
        try:
            return self._takes(raw)
        finally:
            took = time.process_time() - began
            assert took < SLOW_S, f"{self.name} took {took:.1f} s for {raw.hex()}"

    def _takes(self, raw: bytes) -> bool:
        try:
            self.decode(raw)
        except self.refuses_with as error:
            words = error.line() if isinstance(error, (CoveyError, GatewayError)) else ""
            assert words.isprintable(), f"{self.name} says {words!r} of {raw.hex()}"
            return False
        except Exception as error:
            raise AssertionError(f"{self.name} let {error!r} escape for {raw.hex()}") from error
        return True
