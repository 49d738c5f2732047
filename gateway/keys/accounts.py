"""The ledger of a running gateway, kept in step with the store once a second.

A shell, made by `app.py`, asked by `guard.py`. No request waits for the store, but for those
that need a new lease of a quota, such as a key's first of the day. While the store is away keys
that are known go on with what they have leased; what they use is told when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from gateway.errors import ApiError, EnvironmentFault
from gateway.keys.database import StoreAway
from gateway.keys.key import Key, digest
from gateway.keys.ledger import Due, Headroom, Held, Instant, Ledger, Refusal
from gateway.keys.limits import Minute
from gateway.keys.store import Store, Used
from gateway.usage import Tokens

_log = logging.getLogger(__name__)

ROUND_S = 1.0
# While the store is away a round may itself take seconds.
AWAY_ROUND_S = 2.0
# So often a gateway that has nothing to tell is heard of; the store gives up its leases after an
# hour (`store.GONE_S`).
HEARTBEAT_S = 60.0
# Requests that wait for a lease ask for a round at once, but not for a thousand a second.
LEAST_PAUSE_S = 0.05
LEASE_WAIT_S = 5.0
# More than the store's own limits (`database.BUSY_S`, and that to connect): who is behind it then
# is a server that stands still.
ANSWER_S = 12.0
RETRY_AFTER_STORE_S = 5

_T = TypeVar("_T")
_REFUSED = {
    "requests": ("{limit} requests a minute are this key's limit", "rate_limit_exceeded"),
    "tokens": ("{limit} tokens a minute are this key's limit", "rate_limit_exceeded"),
    "quota": ("This key's {limit} tokens of today (UTC) are used up", "insufficient_quota"),
    "lease": ("What is left of this key's {limit} tokens of today is in use",
              "rate_limit_exceeded"),
}  # fmt: skip


def _now() -> Instant:
    return Instant(time.monotonic(), time.time())


class Accounts:
    """Keys and what they may use. `run` is one task; `aclose` ends it and tells the store all.

    `dead` is what a process was called in the store that has ended, and whose leases are free.
    """

    def __init__(self, store: Store, dead: str = "") -> None:
        self.known = False  # whether the keys were read at least once
        self.first_round_done = asyncio.Event()
        self.gateway = secrets.token_hex(8)  # what this process is called in the store
        self._dead = dead
        self._store = store
        self._ledger = Ledger()
        self._keys: dict[str, Key] = {}
        self._revision = (0, 0)
        self._away: str | None = None
        self._away_since = 0.0
        self._told_at = 0.0
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._stopping = False
        # One thread: SQLite's connection and PostgreSQL's are used by one at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, usable or not."""
        return self._keys.get(digest(secret))

    async def admit(self, key: Key, needed: int, wanted: int) -> Held:
        """Return what the request holds (`Ledger.admit`); raises ApiError when a limit is met."""
        found = self._ledger.admit(key, needed, wanted, _now())
        if isinstance(found, Refusal) and found.what == "lease" and self._away is None:
            await self._next_round()
            found = self._ledger.admit(key, needed, wanted, _now())
        if isinstance(found, Held):
            return found
        if found.what == "lease" and self._away is not None:
            raise ApiError(
                "The store of quotas is out of reach, and nothing of this key's is left here",
                status=503,
                hint="Try again later.",
                retry_after_s=RETRY_AFTER_STORE_S,
            )
        text, code = _REFUSED[found.what]
        wait_s = max(1, int(found.wait_s + 0.999))
        raise ApiError(
            text.format(limit=found.limit),
            status=429,
            hint=f"Try again in {wait_s} s.",
            code=code,
            retry_after_s=wait_s,
        )

    def settle(self, held: Held, model: str, cost: Tokens | None, *, estimated: bool) -> None:
        """Count what a request cost (`Ledger.settle`)."""
        self._ledger.settle(held, model, cost, _now(), estimated=estimated)

    def minutes(self) -> dict[str, Minute]:
        """Return what other processes of this gateway are to know (`Ledger.minutes`)."""
        return self._ledger.minutes(_now())

    def elsewhere(self, told: Iterable[Mapping[str, Minute]]) -> None:
        """Take note of what they told (`Ledger.elsewhere`)."""
        self._ledger.elsewhere(told)

    def headroom(self, key: Key) -> tuple[Headroom | None, Headroom | None]:
        """Return what is left of a key's requests and tokens (`Ledger.headroom`)."""
        return self._ledger.headroom(key, _now())

    async def usage(self, since: str, which: str) -> list[Used]:
        """Return what was used from the day `since` on, of a key (its id) or "" for all.

        Of this process it is a second old at most. Raises EnvironmentFault.
        """
        if not self._store.there():
            return []
        return await self._beside(lambda: self._store.usage(since, which=which))

    @property
    def unreported(self) -> int:
        """How many totals the store does not have yet."""
        return self._ledger.unreported

    def view(self) -> dict[str, Any]:
        """Return what /gateway/status tells of keys and store."""
        now = time.time()
        if self._away is not None:
            state = f"away for {now - self._away_since:.0f} s: {self._away}"
        elif not self.known:
            state = "not asked yet"
        else:
            state = "ok" if self._store.there() else "not made yet; `gateway keys create` does"
        active = sum(key.state(now) == "active" for key in self._keys.values())
        return {
            "store": self._store.name,
            "state": state,
            "active_keys": active,
            "unreported": self.unreported,
        }

    async def run(self) -> None:
        """Do a round a second until `aclose`."""
        while not self._stopping:
            waiting, self._waiting = self._waiting, []
            self._asked.clear()
            try:
                await self._round()
            except Exception:  # a fault of ours; what is counted stays for the next round
                _log.exception("a round with the store failed")
            self.first_round_done.set()
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            pause_s = ROUND_S if self._away is None else AWAY_ROUND_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await asyncio.sleep(LEAST_PAUSE_S)
                    await self._asked.wait()

    async def aclose(self, task: asyncio.Task[None]) -> None:
        """End the task that runs `run`, give leases back, and tell the store what was counted."""
        self._stopping = True
        self._asked.set()
        await task
        due = self._ledger.due(_now(), closing=True)
        try:
            if due.rows or due.wants:
                await self._exchange(due)
        except EnvironmentFault as error:
            _log.error("the store is away at the end: %s", error.line())
            for row in due.rows:
                _log.error("usage that is not in the store: %s", " ".join(
                    f"{name}={value}" for name, value in row._asdict().items()
                ))  # fmt: skip
        finally:
            await self._beside(self._store.close)
            self._thread.shutdown(wait=False)

    async def _next_round(self) -> None:
        """Wait until a round that has yet to begin is done."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._asked.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEASE_WAIT_S):
                await future

    async def _round(self) -> None:
        if not self._store.there():
            self.known = True
            return
        try:
            if self._dead:
                await self._beside(lambda: self._store.forget(self._dead))
                self._dead = ""
            await self._read_keys()
            now = _now()
            due = self._ledger.due(now)
            if due.rows or due.wants or now.steady - self._told_at >= HEARTBEAT_S:
                await self._exchange(due)
        except EnvironmentFault as error:
            if self._away is None:
                _log.warning("keys go on with what they have leased: %s", error.line())
                self._away_since = time.time()
            self._away = error.line()
            return
        if self._away is not None:
            _log.info("the store %s answers again", self._store.name)
        self._away = None

    async def _read_keys(self) -> None:
        revision = await self._beside(self._store.revision)
        if revision != self._revision or not self.known:
            self._keys = await self._beside(self._store.by_hash)
            self._revision = revision
            self.known = True
            _log.info("keys read store=%s keys=%d", self._store.name, len(self._keys))

    async def _exchange(self, due: Due) -> None:
        now = _now()
        try:
            grants = await self._beside(
                lambda: self._store.exchange(self.gateway, due.rows, due.wants, now.unix)
            )
        except Exception as error:
            perhaps = error.perhaps_done if isinstance(error, StoreAway) else True
            self._ledger.failed(due, perhaps_done=perhaps)
            raise
        self._ledger.done(due, grants, now)
        self._told_at = now.steady

    async def _beside(self, call: Callable[[], _T]) -> _T:
        """Run a call of the store in its thread; one that takes too long ends with StoreAway."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        done, _ = await asyncio.wait([future], timeout=ANSWER_S)
        if not done:
            self._store.abort()
        return await future
