"""What each key has used at this gateway and what it may still use: admit, settle, report.

A core. A request holds tokens from its admission (its prompt by its size, and the most that it may
generate) to its end, when what it cost is known; then the hold goes and the cost is counted.

| limit | kept | shared between gateways |
|---|---|---|
| requests, tokens a minute | a Window here | between a gateway's workers, who tell each other |
| tokens a day (UTC) | a Lease of the store's quota, a block at a time | yes |

What is reported to the store are totals of this gateway for a key, day and model, not differences:
a report that is sent again, because nobody knows whether it arrived, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.keys.key import Key, day_left_s, day_of
from gateway.keys.limits import HELD_RETRY_S, Lease, Minute, Window, block, summed
from gateway.usage import Tokens

# A lease that nobody uses for so long goes back to the store, for the other gateways.
IDLE_S = 60.0
_DAY_S = 86_400.0


class Instant(NamedTuple):
    """A moment by two clocks: `steady` never goes back, `unix` says which day it is."""

    steady: float
    unix: float


@dataclass(frozen=True)
class Held:
    """What an admitted request holds until it is settled."""

    key: Key
    day: str
    tokens: int


@dataclass(frozen=True)
class Refusal:
    """Which limit a request would break, and when it would not.

    `lease`: the quota is not used up, but this gateway has no more of it: ask the store.
    """

    what: Literal["requests", "tokens", "quota", "lease"]
    limit: int
    wait_s: float


class Row(NamedTuple):
    """What this gateway counted of a key's day and model in all, so far.

    `estimated`: how many of the requests did not say what they cost.
    """

    key_id: str
    day: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated: int


class Want(NamedTuple):
    """How many tokens of a key's day this gateway wants to have in all."""

    key_id: str
    day: str
    tokens: int


class Grant(NamedTuple):
    """What it may have, and what the other gateways have used of it."""

    key_id: str
    day: str
    granted: int
    others: int


class Due(NamedTuple):
    """What the store is to be told and asked."""

    rows: list[Row]
    wants: list[Want]


class Headroom(NamedTuple):
    """A limit as a client sees it: how much, how much is left, seconds until all is left."""

    limit: int
    left: int
    reset_s: float


@dataclass
class _Account:
    key: Key
    requests: Window | None
    tokens: Window | None
    leases: dict[str, Lease] = field(default_factory=dict)
    missing: int = 0  # what the last refused request lacked
    used_at: float = 0.0


class Ledger:
    """The accounts of all keys that were used here."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._totals: dict[tuple[str, str, str], Row] = {}
        self._unreported: set[tuple[str, str, str]] = set()
        self._elsewhere: dict[str, Minute] = {}

    def admit(self, key: Key, needed: int, wanted: int, now: Instant) -> Held | Refusal:
        """Count a request that costs `needed` tokens at least and `wanted` at most, or refuse it.

        It holds what it wants, or what is left if that is less. More than a whole limit is never
        needed: such a request gets the limit to itself.
        """
        account = self._account(key)
        account.used_at = now.steady
        held = max(needed, wanted)
        if account.requests is not None and account.requests.left(now.steady) < 1:
            return _refusal("requests", account.requests, 1, now)
        if account.tokens is not None:
            least = min(needed, account.tokens.limit)
            left = account.tokens.left(now.steady)
            if left < least:
                return _refusal("tokens", account.tokens, least, now)
            held = min(held, left)
        day = day_of(now.unix)
        if key.tokens_per_day is not None:
            lease = account.leases.setdefault(day, Lease())
            least = min(needed, key.tokens_per_day)
            if lease.others + lease.used + least > key.tokens_per_day:
                return Refusal("quota", key.tokens_per_day, day_left_s(now.unix))
            if lease.left < least:
                account.missing = max(account.missing, least)
                wait_s = HELD_RETRY_S if lease.held else IDLE_S
                return Refusal("lease", key.tokens_per_day, wait_s)
            held = min(held, lease.left)
            lease.held += held
        if account.requests is not None:
            account.requests.use(1, now.steady)
        if account.tokens is not None:
            account.tokens.held += held
        return Held(key, day, held)

    def settle(
        self, held: Held, model: str, cost: Tokens | None, now: Instant, *, estimated: bool = False
    ) -> None:
        """Give back what a request held and count what it cost; None: it was not served."""
        account = self._account(held.key)
        if account.tokens is not None:
            account.tokens.held -= held.tokens
        lease = account.leases.get(held.day)
        if lease is not None:
            lease.held -= held.tokens
        if cost is None:
            return
        spent = cost.prompt + cost.completion
        if account.tokens is not None:
            account.tokens.use(spent, now.steady)
        # Totals older than yesterday's are forgotten: what ran for so long counts as today's.
        day = held.day if held.day >= day_of(now.unix - _DAY_S) else day_of(now.unix)
        if held.key.tokens_per_day is not None:
            account.leases.setdefault(day, Lease()).used += spent
        where = (held.key.id, day, model)
        old = self._totals.get(where, Row(*where, 0, 0, 0, 0))
        self._totals[where] = Row(
            *where,
            old.requests + 1,
            old.prompt_tokens + cost.prompt,
            old.completion_tokens + cost.completion,
            old.estimated + estimated,
        )
        self._unreported.add(where)

    def due(self, now: Instant, *, closing: bool = False) -> Due:
        """Return what to tell and ask the store; `closing`: what is leased and unused goes back."""
        wants: list[Want] = []
        for account in self._accounts.values():
            for day, lease in account.leases.items():
                tokens = _wanted(account, day, lease, now, closing)
                if tokens is None:
                    continue
                wants.append(Want(account.key.id, day, tokens))
                # What is given back may be another gateway's before this one hears of it.
                lease.returning = max(0, lease.granted - tokens)
                lease.granted -= lease.returning
            # What is missed from now on is asked for next time, whatever comes of this.
            account.missing = 0
        return Due([self._totals[where] for where in self._unreported], wants)

    def done(self, due: Due, grants: Iterable[Grant], now: Instant) -> None:
        """Take note that the store has what was `due`, and of what it granted."""
        for row in due.rows:
            where = (row.key_id, row.day, row.model)
            if self._totals[where] == row:
                self._unreported.discard(where)
        wanted = {(want.key_id, want.day): want.tokens for want in due.wants}
        for key_id, day, granted, others in grants:
            account = self._accounts[key_id]
            lease = account.leases[day]
            lease.granted, lease.others, lease.returning = granted, others, 0
            lease.full = granted < wanted[key_id, day]
        yesterday = day_of(now.unix - _DAY_S)
        for where in [w for w in self._totals if w[1] < yesterday and w not in self._unreported]:
            del self._totals[where]
        for account in self._accounts.values():
            for day in [d for d in account.leases if d < yesterday]:
                if not account.leases[day].held:
                    del account.leases[day]

    def failed(self, due: Due, *, perhaps_done: bool) -> None:
        """Take note that the store could not be told; `perhaps_done`: nobody knows whether it was.

        What was to go back stays here, unless it may be another gateway's by now.
        """
        for want in due.wants:
            lease = self._accounts[want.key_id].leases[want.day]
            if not perhaps_done:
                lease.granted += lease.returning
            lease.returning = 0

    def headroom(self, key: Key, now: Instant) -> tuple[Headroom | None, Headroom | None]:
        """Return what is left of a key's requests and tokens; of the day's where no minute counts.

        None: not limited.
        """
        account = self._account(key)
        requests = tokens = None
        if account.requests is not None:
            requests = _headroom(account.requests, now)
        if account.tokens is not None:
            tokens = _headroom(account.tokens, now)
        elif key.tokens_per_day is not None:
            lease = account.leases.get(day_of(now.unix), Lease())
            left = key.tokens_per_day - lease.others - lease.used - lease.held
            tokens = Headroom(key.tokens_per_day, max(0, left), day_left_s(now.unix))
        return requests, tokens

    def minutes(self, now: Instant) -> dict[str, Minute]:
        """Return what was used here of limits a minute, and is held, by the keys' ids."""
        taken = {
            id_: Minute(*(0 if window is None else window.taken(now.steady)
                          for window in (account.requests, account.tokens)))
            for id_, account in self._accounts.items()
        }  # fmt: skip
        return {id_: minute for id_, minute in taken.items() if any(minute)}

    def elsewhere(self, told: Iterable[Mapping[str, Minute]]) -> None:
        """Take note of the `minutes` of all other processes that these limits are for."""
        self._elsewhere = summed(told)
        for account in self._accounts.values():
            self._apply(account)

    @property
    def unreported(self) -> int:
        """How many totals the store does not have yet."""
        return len(self._unreported)

    def _account(self, key: Key) -> _Account:
        account = self._accounts.get(key.id)
        if account is None:
            account = self._accounts[key.id] = _Account(
                key, _window(key.requests_per_minute), _window(key.tokens_per_minute)
            )
            self._apply(account)
        return account

    def _apply(self, account: _Account) -> None:
        minute = self._elsewhere.get(account.key.id, Minute(0, 0))
        for window, taken in zip((account.requests, account.tokens), minute, strict=True):
            if window is not None:
                window.elsewhere = taken


def _wanted(account: _Account, day: str, lease: Lease, now: Instant, closing: bool) -> int | None:
    """Return how much of the day's quota to ask for in all; None: nothing need change."""
    needed = lease.used + lease.held
    idle = now.steady - account.used_at >= IDLE_S or day != day_of(now.unix)
    if closing or idle:
        return needed if lease.granted > needed else None
    step = block(account.key.tokens_per_day or 1)
    if account.missing > lease.left or (lease.left < step // 2 and not lease.full):
        return needed + max(step, account.missing)
    return None


def _window(limit: int | None) -> Window | None:
    return None if limit is None else Window(limit)


def _refusal(
    what: Literal["requests", "tokens"], window: Window, amount: int, now: Instant
) -> Refusal:
    return Refusal(what, window.limit, window.wait_s(amount, now.steady))


def _headroom(window: Window, now: Instant) -> Headroom:
    return Headroom(window.limit, max(0, window.left(now.steady)), window.reset_s(now.steady))
