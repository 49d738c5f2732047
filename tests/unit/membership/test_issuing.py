"""What an issuer decides, alone and beside others; and what every member then believes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.errors import CoveyError, MembershipError, StateError, TicketError, UsageError
from agent.identity import privatefile
from agent.identity.keys import NodeId, NodeKey
from agent.membership.certificate import Certificate
from agent.membership.invites import InviteBook
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.keyring import KeyChange
from agent.membership.roll import HOLD_S
from agent.membership.store import Membership, StateDir
from agent.membership.ticket import Ticket, invite_key

NOW = 1_800_000_000.0
DAY_S = 86400


def key(number: int) -> NodeKey:
    return NodeKey(number.to_bytes(32, "big"))


class States:
    """State directories, locked until the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[StateDir] = []

    def new(self, name: str) -> StateDir:
        state = StateDir(self.folder / name).lock()
        self.made.append(state)
        return state

    def founder(self) -> Membership:
        return self.new("founder").create_mesh("home", "box", NOW)

    def joined(self, issuer: Membership, name: str, now: float = NOW, **wish: object) -> Membership:
        state = self.new(name)
        ticket = issuer.invite(now, addresses=(), ttl_s=60, **wish)  # type: ignore[arg-type]
        reply = issuer.admit(JoinRequest.to(ticket, name, state.node_key()), now)
        return state.accept(ticket, JoinReply.decode(reply.encode()), now)


@pytest.fixture
def states(tmp_path: Path) -> Iterator[States]:
    made = States(tmp_path)
    yield made
    for state in made.made:
        state.unlock()


def ask(ticket: Ticket, who: NodeKey) -> JoinRequest:
    return JoinRequest.to(ticket, "pi", who)


# ----------------------------------------------------------------------- invites


def test_of_two_that_race_for_one_use_one_wins(states: States) -> None:
    founder = states.founder()
    for round_ in range(5):
        ticket = founder.invite(NOW, addresses=(), ttl_s=60)
        start = threading.Barrier(4)
        results: dict[int, object] = {}

        def redeem(who: int, ticket: Ticket = ticket, start: threading.Barrier = start,
                   results: dict[int, object] = results) -> None:  # fmt: skip
            start.wait()
            try:
                results[who] = founder.admit(ask(ticket, key(who)), NOW)
            except TicketError as error:
                results[who] = error.message

        racing = range(10 * round_ + 1, 10 * round_ + 5)
        threads = [threading.Thread(target=redeem, args=(who,)) for who in racing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [who for who, result in results.items() if isinstance(result, JoinReply)]
        assert len(won) == 1
        assert [r for r in results.values() if isinstance(r, str)] == ["this ticket is used up"] * 3
        assert [who for who in racing if founder.is_member(key(who).id, NOW)] == won


def test_an_issuer_without_the_root_key_lets_in_no_issuers(states: States, tmp_path: Path) -> None:
    founder = states.founder()
    ticket = founder.invite(NOW, addresses=(), ttl_s=60, roles=["issuer"])
    founder.move_root_key(tmp_path / "safe", NOW)
    with pytest.raises(MembershipError, match="takes the mesh's root key") as caught:
        founder.invite(NOW, addresses=(), ttl_s=60, roles=["worker", "admin"])
    assert "--root-key FILE" in caught.value.hint
    with pytest.raises(MembershipError, match="role issuer of pi takes the mesh's root key"):
        founder.admit(ask(ticket, key(1)), NOW)
    assert founder.invites().invites[0].uses_left == 1
    founder.invite(NOW, addresses=(), ttl_s=60, roles=["worker", "gateway", "relay"])


class SeveralIssuers(RuleBasedStateMachine):
    """The books of three issuers: tickets, honest and stolen requests, brought anywhere.

    Each request is a (ticket, node) whose invite signature may be another ticket's, or over another
    node's name; it may be brought to any issuer, again and again, before and after its time.
    """

    @initialize()
    def begin(self) -> None:
        self.books = [InviteBook() for _ in range(3)]
        self.now = NOW
        self.tickets: list[tuple[int, bytes, bytes, int, float]] = []
        self.inside: list[set[int]] = []
        self.random = Random(3)

    @rule(issuer=st.integers(0, 2), uses=st.integers(1, 2))
    def invite(self, issuer: int, uses: int) -> None:
        self.books[issuer], made, secret = self.books[issuer].create(
            self.random.randbytes, self.now, ttl_s=100, uses=uses
        )
        self.tickets.append((issuer, made.id, secret, uses, self.now + 100))
        self.inside.append(set())

    @rule(
        which=st.integers(0, 9),
        signs_with=st.integers(0, 9),
        node=st.integers(1, 4),
        names=st.integers(1, 4),
        at=st.integers(0, 2),
        honest=st.booleans(),
    )
    def redeem(
        self, which: int, signs_with: int, node: int, names: int, at: int, honest: bool
    ) -> None:
        if not self.tickets:
            return
        which %= len(self.tickets)
        signs_with %= len(self.tickets)
        issuer, invite_id, _, uses, ends = self.tickets[which]
        if honest:
            signs_with, names, at = which, node, issuer
        signature = invite_key(self.tickets[signs_with][2]).sign(b"node %d" % names)
        room = len(self.inside[which]) < uses or node in self.inside[which]
        good = signs_with == which and names == node and at == issuer
        try:
            self.books[at], _ = self.books[at].redeem(
                invite_id, b"node %d" % node, signature, key(node).id, self.now
            )
        except TicketError as error:
            assert not (good and room and self.now <= ends)
            if not good:
                assert "not known" in error.message
            elif self.now > ends:
                assert "expired" in error.message
            else:
                assert "used up" in error.message
        else:
            assert good and room and self.now <= ends
            self.inside[which].add(node)

    @rule(seconds=st.sampled_from([1, 60, 101]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def nobody_is_in_beyond_the_uses(self) -> None:
        for (issuer, invite_id, _, uses, _), nodes in zip(
            getattr(self, "tickets", []), getattr(self, "inside", []), strict=True
        ):
            (found,) = [i for i in self.books[issuer].invites if i.id == invite_id]
            assert set(found.redeemed_by) == {key(n).id.ed25519 for n in nodes}
            assert found.uses_left == uses - len(nodes) >= 0


TestSeveralIssuers = SeveralIssuers.TestCase
TestSeveralIssuers.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


# ------------------------------------------------------------------ certificates


def test_a_certificate_is_renewed_when_it_is_time_and_not_before(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    first = member.certificate
    assert founder.renew(member.key.id, NOW + 59 * DAY_S) == first
    second = founder.renew(member.key.id, NOW + 60 * DAY_S)
    assert second.newer_than(first, NOW + 60 * DAY_S)
    assert second.not_after == first.not_after + 60 * DAY_S
    assert founder.renew(member.key.id, NOW + 60 * DAY_S) == second
    with pytest.raises(MembershipError, match="is no member, so its certificate is not renewed"):
        founder.renew(member.key.id, NOW + 200 * DAY_S)
    with pytest.raises(MembershipError, match="is no member"):
        founder.renew(key(9).id, NOW)


def test_the_founder_extends_itself_with_the_root_key(states: States, tmp_path: Path) -> None:
    founder = states.founder()
    assert founder.extend(NOW + 243 * DAY_S) is None
    later = NOW + 244 * DAY_S
    made = founder.extend(later)
    assert made == founder.certificate
    assert founder.grant_left_s(later) == 365 * DAY_S
    founder.move_root_key(tmp_path / "safe", later)
    assert founder.extend(later + 300 * DAY_S) is None


def test_roles_and_tags_change_and_the_rest_stays(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi", tags=["home"])
    made = founder.reissue(member.key.id, NOW, roles=["relay"])
    assert (made.name, made.roles, made.tags) == ("pi", ("relay",), ("home",))
    made = founder.reissue(member.key.id, NOW, name="attic", tags=[])
    assert (made.name, made.roles, made.tags) == ("attic", ("relay",), ())
    assert made.ipv4_counter == member.certificate.ipv4_counter
    for wrong in ({"roles": ["king"]}, {"roles": []}, {"tags": ["A B"]}, {"name": "Box"}):
        with pytest.raises(UsageError):
            founder.reissue(member.key.id, NOW, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another member is called box"):
        founder.reissue(member.key.id, NOW, name="box")
    with pytest.raises(UsageError, match="no certificate of"):
        founder.reissue(key(9).id, NOW)
    assert founder.reissue(founder.key.id, NOW, name="box").name == "box"


def test_one_who_was_expired_is_brought_back_but_not_one_revoked(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    late = NOW + 100 * DAY_S
    assert founder.state(member.key.id, late) == "expired"
    founder.reissue(member.key.id, late)
    assert founder.is_member(member.key.id, late)
    founder.revoke(member.key.id, "", late)
    with pytest.raises(MembershipError, match="pi was revoked less than a second ago"):
        founder.reissue(member.key.id, late)


# ------------------------------------------------------------------- who is out


def test_revocation_is_kept_and_obeyed(states: States) -> None:
    founder = states.founder()
    member, other = states.joined(founder, "pi"), states.joined(founder, "other")
    revision = founder.revision
    done = founder.revoke(member.key.id, "lost", NOW)
    assert done.made is not None and done.certificates == ()
    assert founder.revision > revision
    assert founder.revoke(member.key.id, "again", NOW).made is None
    assert other.take_revocations(done.made, NOW)
    assert not other.take_revocations(done.made, NOW)
    again = StateDir(states.folder / "other").membership()
    assert again is not None
    for who in (founder, other, again):
        assert who.state(member.key.id, NOW) == "revoked"
        assert not who.is_member(member.key.id, NOW)
        assert member.key.id not in {m.node_id for m in who.live_members(NOW)}
        assert member.key.id in {m.node_id for m in who.members()}
        for refused in (
            lambda who=who: who.verify(member.certificate.encode(), NOW),
            lambda who=who: who.add_member(member.certificate, NOW, control_addresses=["a:1"]),
        ):
            with pytest.raises(MembershipError, match=r"pi \(\w+\) was revoked .* \(lost\)"):
                refused()


def test_certificates_of_a_revoked_issuer(states: States) -> None:
    founder = states.founder()
    issuer = states.joined(founder, "issuer", roles=["worker", "issuer"])
    second = states.joined(founder, "second", roles=["worker", "issuer"])
    watcher = states.joined(founder, "watcher")
    theirs = states.joined(issuer, "theirs")
    for who in (watcher, second):
        who.add_member(theirs.certificate, NOW)
    unseen = issuer.reissue(theirs.key.id, NOW, tags=["new"])
    # the founder never saw it, so it cannot give it a new one: the hour is what it has
    done = founder.revoke(issuer.key.id, "stolen", NOW)
    assert done.made is not None
    for who in (watcher, second):
        who.take_revocations(done.made, NOW)
    node = theirs.key.id
    assert watcher.is_member(node, NOW + HOLD_S)
    assert watcher.verify(theirs.certificate.encode(), NOW + HOLD_S) == node
    assert watcher.state(node, NOW + HOLD_S + 1) == "expired"
    assert watcher.next_step(NOW) == NOW + HOLD_S
    for refused, now in ((theirs.certificate, NOW + HOLD_S + 1), (unseen, NOW)):
        with pytest.raises(MembershipError, match="signed by an issuer that was revoked"):
            watcher.verify(refused.encode(), now)
    # within the hour another issuer renews it, though it is far from its end
    with pytest.raises(MembershipError, match="is no member"):
        founder.renew(node, NOW)
    renewed = second.renew(node, NOW + 60)
    watcher.add_member(renewed, NOW + 60)
    assert watcher.is_member(node, NOW + HOLD_S + 1)


def test_who_refuses_to_revoke_whom(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    with pytest.raises(MembershipError, match="does not revoke itself"):
        founder.revoke(founder.key.id, "", NOW)
    with pytest.raises(MembershipError, match="is the mesh's only issuer"):
        member.revoke(founder.key.id, "", NOW)
    with pytest.raises(MembershipError, match="is no issuer"):
        member.revoke(key(9).id, "", NOW)
    # who holds the root key may put out even the last issuer
    assert member.revoke(founder.key.id, "", NOW, root_key=founder.root_key).made is not None
    assert member.state(founder.key.id, NOW) == "revoked"


def test_a_revoked_issuer_decides_nothing(states: States) -> None:
    founder = states.founder()
    issuer = states.joined(founder, "issuer", roles=["worker", "issuer"])
    done = founder.revoke(issuer.key.id, "", NOW)
    assert done.made is not None
    issuer.take_revocations(done.made, NOW)
    assert not issuer.can_issue(NOW)
    for act in (
        lambda: issuer.invite(NOW, addresses=(), ttl_s=60),
        lambda: issuer.revoke(founder.key.id, "", NOW),
        lambda: issuer.rotate(NOW, 3600),
        lambda: issuer.reissue(founder.key.id, NOW, tags=[]),
    ):
        with pytest.raises(MembershipError):
            act()
    assert issuer.adopt(NOW) is None


def test_a_list_that_is_not_believed_changes_nothing(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    foreign = states.new("foreign").create_mesh("work", "box", NOW)
    made = foreign.revoke(key(9).id, "", NOW).made
    assert made is not None
    before = (member.revision, (states.folder / "pi" / "revocations.json").read_bytes())
    with pytest.raises(MembershipError, match="for another mesh"):
        member.take_revocations(made, NOW)
    assert (states.folder / "pi" / "revocations.json").read_bytes() == before[1]
    assert member.revision == before[0]


def test_only_ones_own_list_is_reconciled(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi", roles=["worker", "issuer"])
    made = founder.revoke(key(9).id, "", NOW).made
    assert made is not None
    with pytest.raises(MembershipError, match="is not this node's"):
        member.reconcile(made, NOW)
    assert founder.reconcile(made, NOW) is None


def test_a_full_disk_revokes_nobody(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")

    def full(path: Path, data: bytes) -> None:
        raise StateError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(privatefile, "replace", full)
        with pytest.raises(StateError):
            founder.revoke(member.key.id, "", NOW)
        with pytest.raises(StateError):
            founder.rotate(NOW, 3600)
    assert founder.is_member(member.key.id, NOW)
    assert founder.key_ring.changing(NOW) is None
    assert founder.revoke(member.key.id, "", NOW).made is not None


# ------------------------------------------------------------------- network key


def test_a_revoked_issuers_key_change(states: States) -> None:
    founder = states.founder()
    issuer = states.joined(founder, "issuer", roles=["worker", "issuer"])
    member = states.joined(founder, "pi")
    before = issuer.rotate(NOW, 3600)
    done = founder.revoke(issuer.key.id, "", NOW + 10)
    assert done.made is not None
    member.take_revocations(done.made, NOW + 10)
    # what it did before it was put out counts: others send with that key already
    assert member.announce_key(before, NOW + 20)
    assert member.learn_keys(issuer.key_ring.offer(NOW), NOW + 20)
    after = issuer.key_ring.pruned(NOW + 9999)
    _, change = after.rotate(issuer._signer(NOW, ""), b"x" * 32, NOW + 9999, 3600, shortest_s=1200)
    with pytest.raises(MembershipError, match="of an issuer that was revoked before"):
        member.announce_key(KeyChange.decode(change.encode()), NOW + 9999)


def test_keys_are_kept(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    change = founder.rotate(NOW, 3600)
    assert member.announce_key(change, NOW)
    again = StateDir(states.folder / "pi").membership()
    assert again is not None and again.key_ring == member.key_ring
    assert again.key_ring.pending == (change,)
    revision = member.revision
    assert member.learn_keys(founder.key_ring.offer(NOW), NOW)
    assert not member.learn_keys(founder.key_ring.offer(NOW), NOW)
    assert member.revision == revision + 1
    assert member.next_step(NOW) == NOW + 1800
    again = StateDir(states.folder / "pi").membership()
    assert again is not None and again.key_ring == founder.key_ring
    member.prune(NOW + 4000)
    assert len(member.key_ring.keys) == 1


# ------------------------------------------------------------------ who is meant


def test_members_are_found_by_name_id_and_end(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    node = member.key.id
    for text in ("pi", str(node), node.short, str(node)[-4:]):
        assert founder.resolve(text, NOW).node_id == node
    for text in ("", "p", "nobody", str(node)[-3:], str(node)[:20], "12D3KooW"):
        with pytest.raises(UsageError, match="no member is called"):
            founder.resolve(text, NOW)


def test_who_is_meant_must_be_clear(states: States) -> None:
    founder = states.founder()
    one = states.joined(founder, "pi")
    founder.revoke(one.key.id, "", NOW)
    state = states.new("second")
    ticket = founder.invite(NOW, addresses=(), ttl_s=60)
    founder.admit(JoinRequest.to(ticket, "pi", state.node_key()), NOW)
    # the name of one who is out is free again, and means the one who is in
    assert founder.resolve("pi", NOW).node_id == state.node_key().id
    founder.revoke(state.node_key().id, "", NOW)
    with pytest.raises(UsageError, match="may be any of 2 members"):
        founder.resolve("pi", NOW)


def test_the_revision_grows_with_what_matters_alone(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    steps = [founder.revision]
    founder.add_member(member.certificate, NOW, control_addresses=["192.0.2.1:4001"])
    founder.prune(NOW)
    steps.append(founder.revision)
    assert steps[0] == steps[1]
    founder.reissue(member.key.id, NOW, tags=["new"])
    steps.append(founder.revision)
    founder.rotate(NOW, 3600)
    steps.append(founder.revision)
    assert steps[1] < steps[2] < steps[3]


def test_next_step_is_when_time_alone_changes_something(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    end = member.certificate.not_after
    assert founder.next_step(NOW) == end
    assert founder.is_member(member.key.id, end) and not founder.is_member(member.key.id, end + 1)
    assert founder.next_step(NOW + 2000 * DAY_S) is None


# ----------------------------------------------------------------------- the rest


def test_the_disk_decides_which_certificate_is_ones_own(states: States) -> None:
    """A crash between the two files leaves the newer certificate, which counts."""
    founder = states.founder()
    member = states.joined(founder, "pi")
    made = founder.reissue(member.key.id, NOW, name="attic")
    state = states.made[1]
    state.write_certificate(made)
    again = StateDir(state.path).membership()
    assert again is not None
    assert again.certificate == made
    known = again.find(again.key.id)
    assert known is not None and known.certificate == made


def test_leaving_is_final_and_survives_a_restart(states: States) -> None:
    founder = states.founder()
    member = states.joined(founder, "pi")
    word = member.depart(NOW)
    assert member.state(member.key.id, NOW) == "left"
    again = StateDir(states.folder / "pi").membership()
    assert again is not None and again.state(again.key.id, NOW) == "left"
    assert founder.take_revocations(word, NOW)
    ticket = founder.invite(NOW, addresses=(), ttl_s=60)
    with pytest.raises(MembershipError) as caught:
        founder.admit(ask(ticket, member.key), NOW)
    assert "this node left the mesh" in caught.value.message
    assert "agent leave" in caught.value.hint


def test_every_refusal_is_a_covey_error_with_words(states: States) -> None:
    founder = states.founder()
    for act in (
        lambda: founder.verify(b"", NOW),
        lambda: founder.verify(bytes(430), NOW),
        lambda: founder.resolve("\x00", NOW),
        lambda: founder.renew(NodeId(bytes(32)), NOW),
        lambda: founder.reissue(NodeId(bytes(32)), NOW),
        lambda: founder.rotate(NOW, -1),
        lambda: founder.rotate(NOW, float("nan"), force=True),
        lambda: founder.move_root_key(Path("/nonexistent/folder/key"), NOW),
    ):
        with pytest.raises(CoveyError) as caught:
            act()
        assert caught.value.message
    assert isinstance(founder.certificate, Certificate)
    assert founder.root_key is not None


def test_many_certificates_cost_one_write(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    founder = states.founder()
    others = [states.joined(founder, f"pi-{number}") for number in range(4)]
    foreign = states.new("foreign").create_mesh("work", "box", NOW).certificate
    first, watcher = others[0], others[0]
    newer = founder.reissue(others[1].key.id, NOW, tags=["new"])
    shown = [foreign, others[1].certificate, newer, *(o.certificate for o in others)]
    writes: list[str] = []
    replace = privatefile.replace

    def counting(path: Path, data: bytes) -> None:
        writes.append(path.name)
        replace(path, data)

    monkeypatch.setattr(privatefile, "replace", counting)
    watcher.add_certificates(shown, NOW)
    assert writes == ["members.json"]
    known = watcher.find(others[1].key.id)
    assert known is not None and known.certificate == newer
    assert len(watcher.live_members(NOW)) == 5
    watcher.add_certificates(shown, NOW)
    assert writes == ["members.json"]
    with pytest.raises(MembershipError, match="is for another mesh"):
        first.add_certificates([foreign], NOW)
