"""A node's membership over restarts, crashes and full disks."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import MembershipError, StateError, TicketError, UsageError
from agent.identity import addresses, privatefile
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import issuer
from agent.membership.grant import Signer
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.store import Membership, StateDir
from agent.membership.ticket import Ticket

NOW = 1_800_000_000.0
HERE = ("192.0.2.1:4001",)


def node(number: int) -> NodeKey:
    return NodeKey(number.to_bytes(32, "big"))


@pytest.fixture
def founder(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "founder").lock() as state:
        yield state


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "newcomer").lock() as state:
        yield state


def create(state: StateDir, now: float = NOW) -> Membership:
    return state.create_mesh("home", "box", now)


def invite(membership: Membership, uses: int = 1, now: float = NOW) -> Ticket:
    return membership.invite(now, addresses=HERE, ttl_s=600, uses=uses)


def reopen(state: StateDir) -> Membership:
    membership = StateDir(state.path).membership()
    assert membership is not None
    return membership


def reopen_locked(state: StateDir) -> Membership:
    membership = state.membership()
    assert membership is not None
    return membership


def joined(state: StateDir, issuing: Membership, now: float = NOW) -> Membership:
    ticket = Ticket.parse(invite(issuing, now=now).encode())
    reply = issuing.admit(JoinRequest.to(ticket, "box", state.node_key()), now)
    return state.accept(ticket, JoinReply.decode(reply.encode()), now)


def ask(ticket: Ticket, number: int, name: str = "pi") -> JoinRequest:
    """The request of the node of a number."""
    return JoinRequest.to(ticket, name, node(number))


def contents(state: StateDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in state.path.iterdir()}


def test_a_new_directory_is_in_no_mesh(founder: StateDir) -> None:
    assert founder.membership() is None
    assert [path.name for path in founder.path.iterdir()] == ["lock"]


def test_a_founder_is_a_member_of_its_own_mesh(founder: StateDir) -> None:
    membership = create(founder)
    mine = membership.certificate
    membership.verify(mine.encode(), NOW)
    assert membership.root_key is not None
    assert membership.mesh.root == membership.root_key.id != membership.key.id
    assert membership.mesh.id == addresses.mesh_id(membership.root_key.id)
    assert len(membership.network_keys(NOW).sending) == 32
    assert membership.network_keys(NOW).accepting == (membership.network_keys(NOW).sending,)
    assert membership.can_issue(NOW)
    assert membership.grant_left_s(NOW) == membership.certificate_left_s(NOW) == 365 * 86400
    assert (membership.mesh.name, mine.name) == ("home", "box")
    assert mine.roles == ("worker", "gateway", "issuer", "admin")
    assert membership.ipv6 in membership.mesh.ipv6_prefix
    assert membership.ipv4 in IPv4Network("10.77.0.0/16")
    assert [member.node_id for member in membership.members()] == [membership.key.id]
    assert membership.peers() == ()


def test_every_file_is_private(founder: StateDir) -> None:
    invite(create(founder))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in founder.path.iterdir()}
    names = ("certificate", "invites.json", "lock", "members.json", "mesh.json", "node.key",
             "networkkeys.json", "revocations.json", "root.key")  # fmt: skip
    assert modes == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE(founder.path.stat().st_mode) == 0o700


def test_a_restart_finds_everything_as_it_was(founder: StateDir, newcomer: StateDir) -> None:
    first = create(founder)
    second = joined(newcomer, first)
    for before, state in ((first, founder), (second, newcomer)):
        after = reopen(state)
        assert after.key == before.key
        assert after.root_key == before.root_key
        assert after.mesh == before.mesh
        assert after.certificate == before.certificate
        assert after.members() == before.members()
        assert after.invites() == before.invites()
        assert after.key_ring == before.key_ring
        assert after.revocations == before.revocations
        assert (after.ipv4, after.ipv6) == (before.ipv4, before.ipv6)


def test_a_join_from_the_ticket_to_the_member(founder: StateDir, newcomer: StateDir) -> None:
    first = create(founder)
    first.add_member(first.certificate, NOW, wireguard_endpoints=["192.0.2.1:51820"])
    second = joined(newcomer, first)
    assert second.certificate.name == "box-2"
    assert second.root_key is None
    assert second.mesh == first.mesh
    assert second.network_keys(NOW) == first.network_keys(NOW)
    assert not second.can_issue(NOW)
    assert {member.node_id for member in second.members()} == {first.key.id, second.key.id}
    assert second.peers()[0].wireguard_endpoints == ("192.0.2.1:51820",)
    assert first.peers()[0].certificate == second.certificate
    assert first.is_member(second.key.id, NOW)
    assert second.is_member(first.key.id, NOW)
    assert first.ipv4 != second.ipv4


def test_only_an_issuer_lets_others_in(founder: StateDir, newcomer: StateDir) -> None:
    first = create(founder)
    second = joined(newcomer, first)
    with pytest.raises(MembershipError, match="it is no issuer"):
        invite(second)
    with pytest.raises(MembershipError, match=f"of another issuer, {first.key.id.short}"):
        second.admit(ask(invite(first), 1), NOW)
    assert not (newcomer.path / "invites.json").exists()


def test_bad_tickets_are_refused_and_change_nothing(founder: StateDir) -> None:
    membership = create(founder)
    ticket = invite(membership)
    good = ask(ticket, 1)
    before = contents(founder)
    wrong = msgspec.structs.replace(ticket, secret=bytes(16))
    with pytest.raises(TicketError, match="not known"):
        membership.admit(ask(wrong, 1), NOW)
    with pytest.raises(TicketError, match="expired 5 minutes ago"):
        membership.admit(good, NOW + 600 + 310)
    with pytest.raises(UsageError, match="cannot be a name"):
        membership.admit(ask(ticket, 1, "No"), NOW)
    with pytest.raises(MembershipError, match="need not join"):
        membership.admit(JoinRequest.to(ticket, "box", membership.key), NOW)
    for stolen in (node(2).id.ed25519, membership.mesh.root.ed25519):
        with pytest.raises(MembershipError, match="not signed by the node"):
            membership.admit(msgspec.structs.replace(good, node=stolen), NOW)
    assert contents(founder) == before
    membership.admit(good, NOW)
    with pytest.raises(TicketError, match="used up"):
        membership.admit(ask(ticket, 2), NOW)
    assert not membership.is_member(node(2).id, NOW)


def test_a_lost_answer_is_given_again_with_the_same_address(founder: StateDir) -> None:
    membership = create(founder)
    request = ask(invite(membership), 1)
    first = membership.admit(request, NOW)
    again = reopen_locked(founder).admit(request, NOW + 30)
    one = certificates.Certificate.decode(first.certificate)
    two = certificates.Certificate.decode(again.certificate)
    assert (one.name, one.ipv4_counter) == (two.name, two.ipv4_counter)
    assert len(reopen(founder).members()) == 2


def test_an_invite_with_a_bad_address_is_not_kept(founder: StateDir) -> None:
    membership = create(founder)
    with pytest.raises(UsageError, match="is not an address"):
        membership.invite(NOW, addresses=["nowhere"], ttl_s=60)
    assert membership.invites().invites == ()


def test_a_node_is_in_one_mesh(founder: StateDir, newcomer: StateDir, tmp_path: Path) -> None:
    first = create(founder)
    with pytest.raises(StateError, match="already in the mesh home"):
        create(founder)
    joined(newcomer, first)
    with StateDir(tmp_path / "other").lock() as other:
        foreign = other.create_mesh("work", "box", NOW)
        before = contents(newcomer)
        with pytest.raises(StateError, match="already in the mesh home"):
            joined(newcomer, foreign)
        assert contents(newcomer) == before


def test_joining_its_own_mesh_again_renews(founder: StateDir, newcomer: StateDir) -> None:
    first = create(founder)
    before = joined(newcomer, first)
    after = joined(newcomer, first, NOW + 1000)
    assert after.certificate.not_after == before.certificate.not_after + 1000
    assert (after.ipv4, after.ipv6) == (before.ipv4, before.ipv6)
    assert first.peers()[0].certificate == after.certificate


def test_a_reply_of_another_mesh_leaves_no_trace(
    founder: StateDir, newcomer: StateDir, tmp_path: Path
) -> None:
    first = create(founder)
    key = newcomer.node_key()
    with StateDir(tmp_path / "other").lock() as other:
        foreign = other.create_mesh("work", "box", NOW)
        reply = foreign.admit(JoinRequest.to(invite(foreign), "box", key), NOW)
    with pytest.raises(MembershipError, match="another mesh than the ticket's"):
        newcomer.accept(invite(first), reply, NOW)
    assert newcomer.membership() is None
    assert sorted(contents(newcomer)) == ["lock", "node.key"]


def test_impossible_meshes_leave_no_key(founder: StateDir) -> None:
    for name, node_name, network in (
        ("Home", "box", "10.77.0.0/16"),
        ("home", "Box", "10.77.0.0/16"),
        ("home", "box", "8.8.0.0/16"),
    ):
        with pytest.raises(UsageError):
            founder.create_mesh(name, node_name, NOW, network=IPv4Network(network))
    assert sorted(contents(founder)) == ["lock"]


def test_members_are_remembered_with_what_is_new(founder: StateDir) -> None:
    membership = create(founder)
    membership.admit(ask(invite(membership), 1), NOW)
    certificate = membership.peers()[0].certificate
    member = membership.add_member(certificate, NOW, wireguard_endpoints=["192.0.2.9:51820"])
    assert member.wireguard_endpoints == ("192.0.2.9:51820",)
    member = membership.add_member(certificate, NOW, control_addresses=["192.0.2.9:4001"] * 2)
    assert member.wireguard_endpoints == ("192.0.2.9:51820",)
    assert member.control_addresses == ("192.0.2.9:4001",)
    member = membership.add_member(certificate, NOW, wireguard_endpoints=[])
    assert member.wireguard_endpoints == ()
    many = [f"192.0.2.9:{port}" for port in range(1, 20)]
    assert membership.add_member(certificate, NOW, discovery_endpoints=many) == (
        reopen(founder).find(node(1).id)
    )
    assert membership.peers()[0].discovery_endpoints == tuple(many[:8])
    with pytest.raises(UsageError, match="is not an address"):
        membership.add_member(certificate, NOW, wireguard_endpoints=["nowhere"])


def test_a_newer_certificate_is_kept_and_an_older_one_is_not(founder: StateDir) -> None:
    membership = create(founder)
    assert membership.root_key is not None

    def issued(now: float, who: NodeId) -> certificates.Certificate:
        assert membership.root_key is not None
        known = [member.certificate for member in membership.members()]
        network = membership.mesh.ipv4_network
        signer = Signer.of_root(membership.root_key)
        return issuer.issue(signer, known, who, "pi", ["worker"], [], network, now)

    old, new = issued(NOW, node(1).id), issued(NOW + 10, node(1).id)
    for certificate in (old, new, old):
        membership.add_member(certificate, NOW + 10)
    found = membership.find(node(1).id)
    assert found is not None
    assert found.certificate == new

    mine = issued(NOW + 20, membership.key.id)
    membership.add_member(mine, NOW + 20)
    assert membership.certificate == mine == reopen(founder).certificate


def test_what_is_known_already_is_not_written_again(
    founder: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = create(founder)
    membership.add_member(membership.certificate, NOW, control_addresses=HERE)
    monkeypatch.setattr(privatefile, "replace", lambda *_: pytest.fail("written again"))
    membership.add_member(membership.certificate, NOW, control_addresses=HERE)


def test_strangers_are_not_added(founder: StateDir, newcomer: StateDir) -> None:
    membership, foreign = create(founder), newcomer.create_mesh("work", "box", NOW)
    with pytest.raises(MembershipError, match="another mesh"):
        membership.add_member(foreign.certificate, NOW)
    with pytest.raises(MembershipError, match="expired"):
        membership.add_member(membership.certificate, NOW + certificates.LONGEST_LIFETIME_S + 60)
    with pytest.raises(MembershipError, match="damaged"):
        membership.verify(b"junk", NOW)
    assert not membership.is_member(foreign.key.id, NOW)
    assert not membership.is_member(membership.key.id, NOW + certificates.LONGEST_LIFETIME_S + 60)


def test_a_lost_mesh_file_does_not_lose_the_root_key_or_the_addresses(founder: StateDir) -> None:
    before = create(founder)
    before.admit(ask(invite(before), 1), NOW)
    (founder.path / "mesh.json").unlink()
    after = create(founder, NOW + 10)
    assert after.mesh.id == before.mesh.id
    assert (after.ipv4, after.ipv6) == (before.ipv4, before.ipv6)
    assert after.is_member(node(1).id, NOW + 10)
    assert after.network_keys(NOW) == before.network_keys(NOW)


def test_a_root_key_of_another_mesh_is_not_used(founder: StateDir, newcomer: StateDir) -> None:
    (newcomer.path / "root.key").write_bytes(b"cnJycnJycnJycnJycnJycnJycnJycnJycnJycnJycnI=\n")
    (newcomer.path / "root.key").chmod(0o600)
    assert joined(newcomer, create(founder)).root_key is None


def test_changing_without_the_lock_is_our_mistake(founder: StateDir) -> None:
    membership = create(founder)
    founder.unlock()
    for change in (
        lambda: invite(membership),
        lambda: founder.create_mesh("home", "box", NOW),
        lambda: membership.add_member(membership.certificate, NOW, control_addresses=HERE),
    ):
        with pytest.raises(RuntimeError, match="hold the lock"):
            change()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    uses=st.integers(1, 3),
    asks=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([None, 0, 1])), max_size=8),
)
def test_no_crash_loses_a_member_or_lets_one_too_many_in(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    uses: int,
    asks: list[tuple[int, int | None]],
) -> None:
    """Each ask may die before its first or second write; then the agent starts again from disk."""
    replace = privatefile.replace
    with StateDir(tmp_path_factory.mktemp("state") / "s").lock() as state:
        membership = create(state)
        ticket = invite(membership, uses)
        answered: dict[NodeId, certificates.Certificate] = {}
        for who, dies_before in asks:
            writes = 0

            def dying(path: Path, data: bytes, limit: int | None = dies_before) -> None:
                nonlocal writes
                if writes == limit:
                    raise StateError("the machine lost power")
                writes += 1
                replace(path, data)

            monkeypatch.setattr(privatefile, "replace", dying)
            try:
                reply = membership.admit(ask(ticket, who), NOW)
            except TicketError:
                pass
            except StateError:
                membership = reopen_locked(state)
            else:
                answered[node(who).id] = certificates.Certificate.decode(reply.certificate)
        monkeypatch.setattr(privatefile, "replace", replace)
        membership = reopen_locked(state)
        assert len(answered) <= uses
        for member_id, certificate in answered.items():
            found = membership.find(member_id)
            assert found is not None
            assert found.certificate.ipv4_counter == certificate.ipv4_counter
        network = membership.mesh.ipv4_network
        taken = [member.certificate.ipv4(network) for member in membership.members()]
        assert len(set(taken)) == len(taken)
        # A use that a crash took still belongs to its node: it asks again, and is let in.
        redeemed = membership.invites().invites[0].redeemed_by
        for who in range(1, 6):
            if node(who).id.ed25519 in redeemed:
                membership.admit(ask(ticket, who), NOW)
        assert len(membership.peers()) <= uses


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_join_that_dies_half_way_can_be_done_again(
    founder: StateDir, newcomer: StateDir, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    first = create(founder)
    ticket = invite(first)
    reply = first.admit(JoinRequest.to(ticket, "pi", newcomer.node_key()), NOW)
    replace, left = privatefile.replace, [writes]

    def dying(path: Path, data: bytes) -> None:
        if not left[0]:
            raise StateError("the machine lost power")
        left[0] -= 1
        replace(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(privatefile, "replace", dying)
        with pytest.raises(StateError, match="lost power"):
            newcomer.accept(ticket, reply, NOW)
    assert newcomer.membership() is None
    assert newcomer.accept(ticket, reply, NOW).is_member(first.key.id, NOW)
