"""The ACL of a running node: its file, the members, and the table that follows from both.

A service for the daemon: `start` before WireGuard has peers, `update` each second and when the
members changed (cheap when nothing did), `stop` last. Neither a broken file nor a machine without
nftables stops the node: both become health items. Not for deciding who is a member.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.acl import ruleset, verdict
from agent.acl.firewall import Count, Firewall
from agent.acl.policy import Rule, Subject, words
from agent.acl.policyfile import PolicyFile
from agent.acl.ports import CoveyPorts
from agent.errors import EnvironmentFault
from agent.health import Health, HealthItem
from agent.identity.keys import NodeId
from agent.membership.certificate import Certificate

_log = logging.getLogger(__name__)

# How long after a failure nft is asked again for the same rules: it fails for lack of a program
# or a capability, which a person has to give, and each try starts a process.
RETRY_S = 30.0
FILE_FAULT, ENFORCEMENT_FAULT = "acl-file", "acl-not-enforced"


class CheckRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/acl/check: may SRC reach PORT of DST? Words as `agent acl check` takes them."""

    src: str
    dst: str
    port: str


class Certified(Protocol):
    """A member, as far as the ACL looks at it."""

    @property
    def certificate(self) -> Certificate:
        """The member's certificate, verified and valid now."""


class Acl:
    """Keeps this node's table what the file and the members say.

    `network` is the mesh's IPv4 network, `own` this node. With `required` it is a fault that
    `file` does not exist: an operator has named it.
    """

    def __init__(
        self,
        file: Path | None,
        interface: str,
        own: NodeId,
        network: IPv4Network,
        covey_ports: CoveyPorts,
        health: Health,
        *,
        required: bool = False,
        firewall: Firewall | None = None,
    ) -> None:
        self._file = PolicyFile(file)
        self._interface = interface
        self._own = str(own)
        self._network = network
        self._covey = covey_ports
        self._health = health
        self._required = required
        self._firewall = firewall or Firewall(interface)
        self._lock = asyncio.Lock()
        self._members: tuple[Certified, ...] = ()
        self._known: dict[bytes, tuple[Certificate, Subject]] = {}
        self._subjects: tuple[Subject, ...] = ()
        self._text: str | None = None  # what should be in force
        self._applied: str | None = None  # what is
        self._fault: EnvironmentFault | None = None
        self._retry_at = 0.0
        self._counted: dict[str, Count] = {}  # by tables with these rules that were replaced
        self._counts_hold = True  # the applied table counts for the rules as they are now

    async def start(self, members: Iterable[Certified]) -> None:
        """Read the file and put the rules in force; what a killed agent left is replaced.

        Never fails for a broken file or a missing nft: `health` then says so.
        """
        async with self._lock:
            self._file.load()
            self._report_file()
            self._take(tuple(members))
            await self._enforce(0.0, changed=True)

    async def update(self, members: Iterable[Certified], now: float) -> None:
        """Take in who counts as a member now (this node too), and look at the file and the table.

        `now` is in seconds of any one clock.
        """
        async with self._lock:
            rules = self._file.policy.rules
            loaded = self._file.look(now)
            if loaded:
                self._report_file()
                self._counts_hold &= rules == self._file.policy.rules
            taken = self._take(tuple(members))
            await self._enforce(now, changed=loaded or taken)

    async def tick(self, now: float) -> None:
        """Look at the file and the table; the members stay as they were."""
        await self.update(self._members, now)

    async def stop(self) -> None:
        """Remove the table."""
        async with self._lock:
            self._text = self._applied = None
            try:
                await self._firewall.remove()
            except EnvironmentFault as fault:
                level = logging.WARNING if self._fault is None else logging.DEBUG
                _log.log(level, "acl table not removed: %s", fault.line())

    def check(self, src: str, dst: str, port: str) -> dict[str, Any]:
        """Explain whether members `src` may reach a port of `dst`, by this node's file.

        Returns what `verdict.answer` does. Raises UsageError for words that name nobody.
        """
        policy = self._file.policy
        return verdict.answer(policy, self._covey, self._subjects, self._own, (src, dst, port))

    async def describe(self) -> dict[str, Any]:
        """Describe file, rules and what each has matched since this node took the rules in."""
        async with self._lock:
            counted = await self._totals() if self._applied is not None else {}
        own = self._own_subject()
        fault = self._file.fault
        return {
            "file": None if self._file.path is None else str(self._file.path),
            "state": self._file.state,
            "fault": None if fault is None else fault.line(),
            "member": own is not None,
            "enforced": self._applied is not None and self._fault is None,
            "reason": None if self._fault is None else self._fault.line(),
            "table": self._firewall.table,
            "rules": [self._describe_rule(rule, own, counted) for rule in self._file.policy.rules],
            "covey": [
                {"what": service.what, "ports": str(service.ports)}
                for service in self._covey.services
            ],
            "counters": {
                name: _count(counted.get(name))
                for name in (ruleset.COVEY, ruleset.DEFAULT, ruleset.STRANGERS, ruleset.AROUND,
                             ruleset.FORWARDED)
            },
        }  # fmt: skip

    def _describe_rule(
        self, rule: Rule, own: Subject | None, counted: dict[str, Count]
    ) -> dict[str, Any]:
        here = own is not None and rule.is_to(own)
        return {
            "number": rule.number,
            "line": rule.line,
            "from": words(rule.sources),
            "to": words(rule.destinations),
            "ports": words(rule.ports),
            "action": rule.action,
            "here": here,
            "members": sum(rule.is_from(s) for s in self._subjects if s.node != self._own),
            **(_count(counted.get(ruleset.counter_name(rule)) if here else None)),
        }

    def _own_subject(self) -> Subject | None:
        return next((s for s in self._subjects if s.node == self._own), None)

    def _take(self, members: tuple[Certified, ...]) -> bool:
        """Remember the members; say whether anything changed that the rules look at."""
        if members == self._members:  # mostly the very same objects, so this is quick
            return False
        self._members = members
        known, self._known = self._known, {}
        for member in members:
            certificate = member.certificate
            before = known.get(certificate.node)
            if before is None or before[0] != certificate:
                before = (certificate, Subject.of(certificate, self._network))
            self._known[certificate.node] = before
        subjects = tuple(sorted((s for _, s in self._known.values()), key=lambda s: s.node))
        changed = subjects != self._subjects
        self._subjects = subjects
        return changed

    async def _enforce(self, now: float, *, changed: bool) -> None:
        """Make the table what it should be, unless it is or the last try was just now."""
        if changed or self._text is None:
            text = ruleset.ruleset(
                self._interface, self._file.policy, self._covey, self._own_subject(), self._subjects
            )
            changed = text != self._text
            self._text = text
        touched = self._applied is not None and self._firewall.touched()
        if touched:
            _log.warning("acl table was changed by someone else table=%s", self._firewall.table)
        if self._text == self._applied and not touched:
            self._fault = None  # where a failed change was taken back
            self._report_enforcement()
            return
        if self._fault is not None and not changed and not touched and now < self._retry_at:
            return
        if not self._counts_hold:
            self._counted = {}
        elif self._applied is not None and not touched:
            self._counted = await self._totals()
        # Unknown from here to the end of `apply`: a cancellation must not leave it as known.
        before, self._applied = self._applied, None
        try:
            await self._firewall.apply(self._text)
        except EnvironmentFault as fault:
            self._applied = None if touched else before
            self._fault, self._retry_at = fault, now + RETRY_S
        else:
            self._applied, self._fault, self._counts_hold = self._text, None, True
            _log.info("acl table applied table=%s members=%d rules=%d", self._firewall.table,
                      len(self._subjects), len(self._file.policy.rules))  # fmt: skip
        self._report_enforcement()

    async def _totals(self) -> dict[str, Count]:
        """Return the counts since the policy was taken in; those known when nft fails."""
        try:
            present = await self._firewall.counters()
        except EnvironmentFault as fault:
            _log.warning("acl counters cannot be read: %s", fault.line())
            present = {}
        names = self._counted.keys() | present.keys()
        return {name: _sum(self._counted.get(name), present.get(name)) for name in names}

    def _report_file(self) -> None:
        fault, path = self._file.fault, self._file.path
        if fault is not None:
            held = (
                "The rules from before stay in force."
                if self._file.policy.file
                else "Until it is right, members reach Covey's own ports alone."
            )
            self._health.set(
                HealthItem(
                    FILE_FAULT, "error", "The ACL's file is wrong", f"{fault.message}. {held}",
                    fault.hint,
                )
            )  # fmt: skip
        elif self._required and self._file.state == "absent":
            self._health.set(
                HealthItem(
                    FILE_FAULT, "warning", "The ACL's file is missing",
                    f"{path} does not exist. Members reach Covey's own ports alone.",
                    "Write the file, or unset network.acl.",
                )
            )  # fmt: skip
        else:
            self._health.clear(FILE_FAULT)

    def _report_enforcement(self) -> None:
        fault = self._fault
        if fault is None:
            self._health.clear(ENFORCEMENT_FAULT)
            return
        held = (
            f"Every port that is open on {self._interface} is open to every member."
            if self._applied is None
            else "The rules and members from before stay in force."
        )
        self._health.set(
            HealthItem(
                ENFORCEMENT_FAULT, "error", "The ACL is not enforced", f"{fault.message}. {held}",
                fault.hint,
            )
        )  # fmt: skip


def _sum(one: Count | None, other: Count | None) -> Count:
    (packets, size), (more, further) = one or (0, 0), other or (0, 0)
    return packets + more, size + further


def _count(count: Count | None) -> dict[str, int | None]:
    return {"packets": None, "bytes": None} if count is None else dict(
        zip(("packets", "bytes"), count, strict=True)
    )  # fmt: skip
