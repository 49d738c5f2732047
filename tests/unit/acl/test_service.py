"""The service: reload without a restart, members that come and go, and nft that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

import acl_worlds as worlds
import msgspec
import pytest
from acl_worlds import COVEY, Member

from agent.acl.firewall import Count, Finished, Firewall
from agent.acl.service import RETRY_S, Acl, CheckRequest
from agent.errors import EnvironmentFault, UsageError
from agent.health import Health, HealthItem

NETWORK = IPv4Network("10.77.0.0/16")
OWN, OPS, HOME = worlds.member(0), worlds.member(1, tags=("ops",)), worlds.member(2)
RULE = '[[rule]]\nfrom = ["tag:ops"]\nto = "*"\nports = ["tcp:{}"]\naction = "{}"\n'


class Wall(Firewall):
    """A firewall without a kernel; `fault` is what it raises, `counts` what it has counted."""

    def __init__(self) -> None:
        super().__init__("covey0", self._never)
        self.applied: list[str] = []
        self.tries = 0
        self.fault: EnvironmentFault | None = None
        self.was_touched = False
        self.counts: dict[str, Count] = {}
        self.removed = 0

    async def _never(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        raise AssertionError(arguments)

    async def apply(self, text: str) -> None:
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        self.applied.append(text)
        self.counts = {}

    def touched(self) -> bool:
        touched, self.was_touched = self.was_touched, False
        return touched

    async def counters(self) -> dict[str, Count]:
        if self.fault is not None:
            raise self.fault
        return self.counts

    async def remove(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.removed += 1


class Bench:
    """One Acl on a file, its firewall and its health."""

    def __init__(self, directory: Path, *, required: bool = False) -> None:
        self.file = directory / "acl.toml"
        self.health = Health()
        self.wall = Wall()
        self.now = 1000.0
        self.acl = Acl(
            self.file, "covey0", OWN.certificate.node_id, NETWORK, COVEY, self.health,
            required=required, firewall=self.wall,
        )  # fmt: skip

    async def start(self, *members: Member) -> None:
        await self.acl.start(members or (OWN, OPS, HOME))

    async def pass_by(self, seconds: float = 2.0) -> None:
        """Let time go by with a tick each second, as in the daemon."""
        for _ in range(int(seconds)):
            self.now += 1.0
            await self.acl.tick(self.now)

    async def write(self, text: str) -> None:
        self.file.write_text(text)
        await self.pass_by()

    def faults(self) -> dict[str, HealthItem]:
        return {item.code: item for item in self.health.items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_the_default_without_a_file(bench: Bench) -> None:
    await bench.start()
    (text,) = bench.wall.applied
    assert str(OPS.certificate.ipv6) in text
    assert str(HOME.certificate.ipv4(NETWORK)) in text
    assert bench.faults() == {}
    assert bench.acl.check("node-1", "node-0", "tcp:7070")["allowed"] is True
    assert bench.acl.check("node-1", "node-0", "22")["allowed"] is False


async def test_the_file_is_reloaded_without_a_restart(bench: Bench) -> None:
    await bench.start()
    await bench.write(RULE.format(22, "allow"))
    assert bench.acl.check("node-1", "node-0", "22")["allowed"] is True
    assert bench.acl.check("node-2", "node-0", "22")["allowed"] is False
    assert len(bench.wall.applied) == 2
    assert "tcp dport 22 ip6 saddr @members1_6 counter name rule1 accept" in bench.wall.applied[-1]
    bench.file.unlink()
    await bench.pass_by()
    assert bench.acl.check("node-1", "node-0", "22")["allowed"] is False
    assert bench.wall.applied[-1] == bench.wall.applied[0]


async def test_nothing_is_done_while_nothing_changes(bench: Bench) -> None:
    await bench.start()
    await bench.pass_by(20)
    await bench.acl.update([OWN, OPS, HOME], bench.now)
    await bench.acl.update([HOME, OWN, worlds.member(1, tags=("ops",))], bench.now)
    await bench.write("# a file without rules\n")
    assert bench.wall.tries == 1


async def test_a_broken_file_keeps_the_last_good_policy(bench: Bench) -> None:
    bench.file.write_text(RULE.format(22, "allow"))
    await bench.start()
    await bench.write("# one more line\n" + RULE.format(22, "maybe"))
    assert bench.acl.check("node-1", "node-0", "22")["allowed"] is True
    assert bench.wall.tries == 1
    item = bench.faults()["acl-file"]
    assert item.severity == "error"
    assert f"{bench.file}, rule 1 (line 2), action is 'maybe'" in item.text
    assert "The rules from before stay in force." in item.text
    assert '"deny"' in item.what_to_do
    await bench.write(RULE.format(22, "deny"))
    assert bench.faults() == {}
    assert bench.acl.check("node-1", "node-0", "22")["verdicts"][0]["rule"] == 1


async def test_a_file_that_is_broken_at_the_start(bench: Bench) -> None:
    bench.file.write_text("[[rule]\n")
    await bench.start()
    assert "Covey's own ports alone" in bench.faults()["acl-file"].text
    assert len(bench.wall.applied) == 1
    assert (await bench.acl.describe())["state"] == "broken"


async def test_a_file_that_an_operator_named_is_missed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, required=True)
    await bench.start()
    assert bench.faults()["acl-file"].severity == "warning"
    await bench.write(RULE.format(22, "allow"))
    assert bench.faults() == {}


async def test_members_come_and_go(bench: Bench) -> None:
    bench.file.write_text(RULE.format(22, "allow"))
    await bench.start(OWN, HOME)
    with pytest.raises(UsageError, match="no member is called 'node-1'"):
        bench.acl.check("node-1", "node-0", "22")
    await bench.acl.update([OWN, HOME, OPS], bench.now)
    assert bench.wall.applied[-1].count(str(OPS.certificate.ipv6)) == 2
    await bench.acl.update([OWN, HOME, worlds.member(1, tags=("home",))], bench.now)
    assert bench.wall.applied[-1].count(str(OPS.certificate.ipv6)) == 1
    await bench.acl.update([OWN, OPS], bench.now)
    assert str(HOME.certificate.ipv6) not in bench.wall.applied[-1]
    await bench.acl.update([OPS], bench.now)  # this node is no member any more
    assert str(OPS.certificate.ipv6) not in bench.wall.applied[-1]
    assert (await bench.acl.describe())["member"] is False
    assert len(bench.wall.applied) == 5


async def test_a_renamed_member_is_known_by_its_new_name(bench: Bench) -> None:
    await bench.start()
    await bench.acl.update([OWN, OPS, worlds.member(2, name="new")], bench.now)
    assert bench.acl.check("new", "node-0", "icmp")["allowed"] is True


async def test_without_nft_the_node_runs_on_and_says_so(bench: Bench) -> None:
    bench.wall.fault = EnvironmentFault("nft is not installed", hint="Install nftables.")
    await bench.start()
    item = bench.faults()["acl-not-enforced"]
    assert item.severity == "error"
    assert "nft is not installed. Every port that is open on covey0 is open" in item.text
    assert item.what_to_do == "Install nftables."
    assert bench.acl.check("node-1", "node-0", "22")["allowed"] is False
    described = await bench.acl.describe()
    assert described["enforced"] is False
    assert described["reason"] == "nft is not installed. Install nftables."
    bench.now = 1000.0
    await bench.acl.tick(bench.now)
    tries = bench.wall.tries
    await bench.pass_by(RETRY_S - 1)
    assert bench.wall.tries == tries
    bench.wall.fault = None
    await bench.pass_by(2)
    assert bench.wall.tries == tries + 1
    assert bench.faults() == {}
    assert (await bench.acl.describe())["enforced"] is True


async def test_a_change_that_fails_leaves_the_table_before(bench: Bench) -> None:
    await bench.start()
    bench.wall.fault = EnvironmentFault("nft failed: no")
    await bench.write(RULE.format(22, "allow"))
    item = bench.faults()["acl-not-enforced"]
    assert "The rules and members from before stay in force." in item.text
    bench.wall.fault = None
    await bench.write("")  # back to what is in force
    assert bench.faults() == {}


async def test_a_table_that_someone_flushed_is_put_back_at_once(bench: Bench) -> None:
    await bench.start()
    bench.wall.was_touched = True
    await bench.pass_by(1)
    first, second = bench.wall.applied
    assert first == second
    bench.wall.was_touched, bench.wall.fault = True, EnvironmentFault("nft failed: no")
    await bench.pass_by(1)
    assert "is open to every member" in bench.faults()["acl-not-enforced"].text


async def test_counters_go_on_over_changes_of_members(bench: Bench) -> None:
    bench.file.write_text(RULE.format(22, "allow"))
    await bench.start()
    bench.wall.counts = {"rule1": (3, 180), "default": (1, 60)}
    await bench.acl.update([OWN, OPS], bench.now)
    bench.wall.counts = {"rule1": (2, 100)}
    described = await bench.acl.describe()
    (rule,) = described["rules"]
    assert (rule["packets"], rule["bytes"]) == (5, 280)
    assert described["counters"]["default"] == {"packets": 1, "bytes": 60}
    assert described["counters"]["covey"] == {"packets": None, "bytes": None}
    await bench.write(RULE.format(23, "allow"))  # other rules count from zero
    bench.wall.counts = {"rule1": (1, 60)}
    (rule,) = (await bench.acl.describe())["rules"]
    assert rule["packets"] == 1
    await bench.write("# moved down\n" + RULE.format(23, "allow"))  # the same rules
    (rule,) = (await bench.acl.describe())["rules"]
    assert (rule["packets"], rule["line"]) == (1, 2)


async def test_the_description_is_whole(bench: Bench) -> None:
    other = RULE.replace('to = "*"', 'to = ["name:node-2"]').format(23, "deny")
    bench.file.write_text(RULE.format(22, "allow") + other)
    await bench.start()
    bench.wall.counts = {"rule1": (0, 0), "covey": (4, 4)}
    described = await bench.acl.describe()
    assert msgspec.json.decode(msgspec.json.encode(described)) == described
    assert described["rules"] == [
        {"number": 1, "line": 1, "from": ["tag:ops"], "to": ["*"], "ports": ["tcp:22"],
         "action": "allow", "here": True, "members": 1, "packets": 0, "bytes": 0},
        {"number": 2, "line": 6, "from": ["tag:ops"], "to": ["name:node-2"], "ports": ["tcp:23"],
         "action": "deny", "here": False, "members": 1, "packets": None, "bytes": None},
    ]  # fmt: skip
    assert (described["state"], described["fault"]) == ("loaded", None)
    assert described["table"] == "inet covey-covey0"
    assert described["covey"][1] == {"what": "stage files", "ports": "tcp:7070"}
    bench.wall.fault = EnvironmentFault("nft failed: no")
    assert (await bench.acl.describe())["rules"][0]["packets"] is None


async def test_stop_removes_the_table(bench: Bench) -> None:
    await bench.start()
    await bench.acl.stop()
    assert bench.wall.removed == 1
    bench.wall.fault = EnvironmentFault("nft is not installed")
    await bench.acl.stop()


async def test_a_cancelled_apply_is_repeated(tmp_path: Path) -> None:
    class Slow(Wall):
        async def apply(self, text: str) -> None:
            await super().apply(text)
            if self.tries == 1:
                await asyncio.Event().wait()

    bench = Bench(tmp_path)
    wall = Slow()
    acl = Acl(None, "covey0", OWN.certificate.node_id, NETWORK, COVEY, bench.health, firewall=wall)
    task = asyncio.create_task(acl.start([OWN, OPS]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wall.tries == 1
    await acl.tick(1.0)
    await acl.tick(2.0)
    assert wall.tries == 2
    assert (await acl.describe())["state"] == "none"


def test_the_request_is_strict() -> None:
    raw = b'{"src": "a", "dst": "b", "port": "22"}'
    assert msgspec.json.decode(raw, type=CheckRequest) == CheckRequest("a", "b", "22")
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw.replace(b"port", b"prot"), type=CheckRequest)
