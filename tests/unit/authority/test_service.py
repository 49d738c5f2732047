"""A mesh of authorities: join, rename, grant, revoke, leave, rotate, renew play out in all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent.authority import messages
from agent.authority.wishes import (
    GrantWish,
    InviteWish,
    LeaveWish,
    MoveRootKeyWish,
    RenameWish,
    RevokeWish,
    RotateWish,
)
from agent.errors import (
    CoveyError,
    MembershipError,
    PeerError,
    StateError,
    TicketError,
    UsageError,
)
from agent.identity.keys import NodeKey
from agent.membership import certificate as certificates
from agent.membership import join
from agent.membership.join import JoinRequest
from agent.membership.ticket import Ticket

if TYPE_CHECKING:
    from conftest import Net, Node

DAY_S = 86400


async def mesh(net: Net, workers: int = 2) -> tuple[Node, list[Node]]:
    founder = net.found()
    return founder, [await net.join(founder) for _ in range(workers)]


async def offline(net: Net, founder: Node) -> Path:
    """Take the founder's root key away; return where it is."""
    path = net.folder / "safe.key"
    await founder.authority.move_root_key(MoveRootKeyWish(str(path)))
    return path


async def line(asked: Awaitable[object], kind: type[CoveyError]) -> str:
    """Return the one line of the error that must come."""
    with pytest.raises(kind) as caught:
        await asked
    assert "\n" not in caught.value.line()
    return caught.value.line()


# ---------------------------------------------------------------------- joining


async def test_a_newcomer_is_known_everywhere_at_once(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    assert [node.name for node in (founder, one, two)] == ["box", "pi", "pi-2"]
    for node in (founder, one, two):
        for other in (founder, one, two):
            assert node.sees(other) == "member"
    assert founder.changes >= 2  # the daemon followed each
    assert one.changes >= 1


async def test_any_member_passes_a_join_on_to_the_tickets_issuer(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    three = await net.join(founder, "three", at=one)
    assert founder.sees(three) == one.sees(three) == "member"
    assert founder.membership.invites().invites[-1].uses_left == 0


async def test_an_issuer_that_is_off_or_gone_is_told_to_the_newcomer(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    ticket = await founder.authority.invite(InviteWish())
    state = net.state("late")
    net.off.add(founder.id)
    words = await line(net.ask_to_join(one, ticket, "late", state), PeerError)
    assert "the issuer of this ticket, box, does not answer now" in words
    net.off.clear()
    unknown = msgspec.structs.replace(ticket, issuer=NodeKey(b"x" * 32).id.ed25519)
    words = await line(net.ask_to_join(one, unknown, "late", state), TicketError)
    assert "in the mesh no more" in words


async def test_a_join_request_is_its_senders_own(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    ticket = await founder.authority.invite(InviteWish())
    request = JoinRequest.to(ticket, "late", NodeKey(b"n" * 32))
    thief = NodeKey(b"t" * 32).id
    for at in (founder, one):
        words = await line(
            at.control.answer(thief, join.PROTOCOL, request.encode()), MembershipError
        )
        assert "of another node than the one that sent it" in words
    # nor may a member hand in what was not asked of it: the invite's signature names the node
    forged = msgspec.structs.replace(request, node=one.id.ed25519)
    wish = messages.encode(messages.Join(forged.encode()))
    words = await line(founder.control.answer(one.id, messages.PROTOCOL, wish), MembershipError)
    assert "not signed by the node that it names" in words
    assert founder.membership.invites().invites[-1].uses_left == 1


async def test_a_tired_issuer_says_so(net: Net) -> None:
    founder = net.found()
    ticket = await founder.authority.invite(InviteWish(uses=100))
    state = net.state("eager")
    for _ in range(5):
        await net.ask_to_join(founder, ticket, "eager", state)
    assert "asked too often" in await line(net.ask_to_join(founder, ticket, "e", state), PeerError)
    net.now += 10
    await net.ask_to_join(founder, ticket, "eager", state)


@pytest.mark.parametrize("payload", [b"", b"junk", b"\x98" + b"\xc0" * 8, b"\x91" * 2000])
async def test_strangers_get_no_further_with_nonsense(net: Net, payload: bytes) -> None:
    founder = net.found()
    stranger = NodeKey(b"s" * 32).id
    assert "damaged" in await line(
        founder.control.answer(stranger, join.PROTOCOL, payload), PeerError
    )
    with pytest.raises(MembershipError, match="is no member of this mesh"):
        await founder.authority._desk.answer(stranger, messages.encode(messages.GetKeys()))


# ------------------------------------------------------------ names, roles, tags


async def test_a_member_renames_itself_and_no_other(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    told = await one.authority.rename(RenameWish("attic"))
    assert told["name"] == one.name == founder.name_of(one) == two.name_of(one) == "attic"
    assert "neither issuer nor admin" in await line(
        one.authority.rename(RenameWish("cellar", node="pi-2")), MembershipError
    )
    wish = messages.encode(messages.Reissue(two.id.ed25519, name="cellar"))
    assert "takes the role issuer or admin" in await line(
        founder.control.answer(one.id, messages.PROTOCOL, wish), MembershipError
    )
    assert "another member is called box" in await line(
        one.authority.rename(RenameWish("box")), UsageError
    )
    assert "cannot be a name" in await line(one.authority.rename(RenameWish("A b")), UsageError)
    assert (await founder.authority.rename(RenameWish("cellar", node="pi-2")))["told"]
    assert two.name == one.name_of(two) == "cellar"


async def test_a_member_may_not_promote_itself(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    assert "neither issuer nor admin" in await line(
        one.authority.grant(GrantWish("pi", roles=("admin",))), MembershipError
    )
    for request in (
        messages.Reissue(one.id.ed25519, roles=("worker", "admin")),
        messages.Reissue(one.id.ed25519, name="pi", tags=("gpu",)),
        messages.Revoke(founder.id.ed25519),
        messages.Invite(60.0, 1, ("worker",), ()),
        messages.Rotate(3600.0),
    ):
        assert "takes the role issuer or admin" in await line(
            founder.control.answer(one.id, messages.PROTOCOL, messages.encode(request)),
            MembershipError,
        )


async def test_roles_and_tags_are_granted(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    wish = GrantWish(one.id.short, roles=("worker", "relay"), tags=("gpu",))
    told = await founder.authority.grant(wish)
    assert (told["roles"], told["tags"], told["name"]) == (["worker", "relay"], ["gpu"], "pi")
    member = two.membership.find(one.id)
    assert member is not None and member.certificate == one.membership.certificate
    assert one.membership.certificate.tags == ("gpu",)
    # what is not given stays
    told = await founder.authority.grant(GrantWish("pi", tags=()))
    assert (told["roles"], told["tags"]) == (["worker", "relay"], [])


async def test_who_is_off_gets_its_new_certificate_when_it_is_back(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    net.off.add(one.id)
    assert not (await founder.authority.grant(GrantWish("pi", tags=("gpu",))))["told"]
    assert one.membership.certificate.tags == ()
    net.off.clear()
    await one.sync(two)
    assert one.membership.certificate.tags == ("gpu",)


async def test_only_a_nodes_own_newer_certificate_is_pushed(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    old = one.membership.certificate
    await founder.authority.rename(RenameWish("attic", node="pi"))

    async def push(certificate: certificates.Certificate, to: Node) -> bytes:
        wish = messages.encode(messages.Push(certificate.encode()))
        return await to.control.answer(founder.id, messages.PROTOCOL, wish)

    await push(old, one)
    assert one.name == "attic"
    assert "another node's" in await line(push(old, two), MembershipError)


async def test_issuers_and_admins_take_the_root_key(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    safe = await offline(net, founder)
    assert "takes the mesh's root key" in await line(
        founder.authority.grant(GrantWish("pi", roles=("issuer",))), MembershipError
    )
    wish = GrantWish("pi", roles=("worker", "issuer"), root_key=str(safe))
    await founder.authority.grant(wish)
    assert one.membership.can_issue(net.now)
    assert one.membership.grant_left_s(net.now) == pytest.approx(365 * DAY_S, abs=5)
    assert founder.membership.root_key is None
    # and it issues: the newcomer is a member for those who were no part of it
    three = await net.join(one, "three", at=two)
    assert founder.sees(three) == two.sees(three) == "member"
    assert three.membership.certificate.issuer_id == one.id
    assert "cannot be taken back" in await line(
        founder.authority.grant(GrantWish("pi", roles=("worker",), root_key=str(safe))),
        MembershipError,
    )


async def test_an_admin_commands_the_issuers(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    await founder.authority.grant(GrantWish("pi", roles=("admin",)))
    assert not one.membership.can_issue(net.now)
    ticket = Ticket.parse((await one.authority.invite(InviteWish(tags=("lab",)))).encode())
    assert ticket.issuer_id == founder.id
    three = await net.join(founder, "three")
    await one.authority.grant(GrantWish("three", tags=("lab",)))
    assert three.membership.certificate.tags == ("lab",)
    await one.authority.revoke(RevokeWish("three", "lost"))
    assert founder.sees(three) == two.sees(three) == "revoked"
    told = await one.authority.rotate(RotateWish())
    assert told["generation"] == 1
    assert two.membership.key_ring.pending
    assert "only issuer" in await line(one.authority.revoke(RevokeWish("box")), MembershipError)


async def test_a_ticket_names_several_members(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    for number, node in enumerate((one, two), 1):
        founder.membership.add_member(
            node.membership.certificate, net.now, control_addresses=[f"192.0.2.{number}:4001"]
        )
    ticket = await founder.authority.invite(InviteWish(), own=["198.51.100.1:4001"])
    assert ticket.addresses[0] == "198.51.100.1:4001"
    assert sorted(ticket.addresses[1:]) == ["192.0.2.1:4001", "192.0.2.2:4001"]
    many = [f"198.51.100.{n}:4001" for n in range(1, 20)]
    assert len((await founder.authority.invite(InviteWish(), own=many)).addresses) == 8


# ---------------------------------------------------------------- out of the mesh


async def test_a_revoked_node_is_out_everywhere(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    before = two.changes
    told = await founder.authority.revoke(RevokeWish("pi", "lost\nin a train"))
    assert told["name"] == "pi"
    for node in (founder, two):
        assert node.sees(one) == "revoked"
        with pytest.raises(MembershipError, match=r"was revoked .* \(lost in a train\)"):
            node.membership.verify(one.membership.certificate.encode(), net.now)
    assert two.changes > before
    # it comes back neither with its certificate, nor by renewal, nor with a ticket
    await two.control.publish(messages.TOPIC, messages.encode(
        messages.NewCertificates((one.membership.certificate.encode(),))))  # fmt: skip
    assert founder.control.refused_news == [two.id]
    ticket = await founder.authority.invite(InviteWish())
    assert "this node was revoked" in await line(
        net.ask_to_join(founder, ticket, "pi", one.state), MembershipError
    )
    assert founder.membership.invites().invites[-1].uses_left == 1
    wish = messages.encode(messages.Renew(one.membership.certificate.encode()))
    assert "no member" in await line(founder.authority._desk.answer(one.id, wish), MembershipError)
    # nor after a restart of those who know
    assert net.restart(two).sees(one) == "revoked"


async def test_who_was_off_learns_who_is_out_when_it_is_back(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    net.off.add(two.id)
    await founder.authority.revoke(RevokeWish("pi"))
    net.off.clear()
    assert two.sees(one) == "member"
    await two.sync(founder)
    assert two.sees(one) == "revoked"
    three = await net.join(founder, "three")
    assert three.sees(one) == "unknown"
    assert three.membership.revocations == founder.membership.revocations


async def test_the_number_in_the_dht_makes_one_ask(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    assert founder.authority.announcement() is None
    net.off.add(two.id)
    await founder.authority.revoke(RevokeWish("pi"))
    net.off.clear()
    announced = founder.authority.announcement()
    assert announced is not None and len(announced) <= 300
    async with two.running():
        two.authority.heard(founder.id, announced)
        await net.until(lambda: two.sees(one) == "revoked")
    asked = len(two.control.asked)
    two.authority.heard(founder.id, announced)
    assert not two.authority._upkeep._syncs
    assert len(two.control.asked) == asked
    with pytest.raises(PeerError):
        two.authority.heard(founder.id, b"junk")


async def test_who_may_not_be_revoked(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    assert "does not revoke itself" in await line(
        founder.authority.revoke(RevokeWish("box")), MembershipError
    )
    assert "neither issuer nor admin" in await line(
        one.authority.revoke(RevokeWish("box")), MembershipError
    )
    assert "no member is called 'ghost'" in await line(
        founder.authority.revoke(RevokeWish("ghost")), UsageError
    )
    assert "the reason has" in await line(
        founder.authority.revoke(RevokeWish("pi", "x" * 101)), UsageError
    )


async def test_the_members_of_a_revoked_issuer_stay(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    await founder.authority.grant(GrantWish("pi", roles=("worker", "issuer")))
    three = await net.join(one, "three")
    four = await net.join(one, "four")
    await one.authority.revoke(RevokeWish("pi-2"))
    unseen = one.membership.reissue(four.id, net.now + 60, tags=["evil"])
    net.now += 60
    await founder.authority.revoke(RevokeWish("pi", "stolen"))
    for node in (three, four):
        assert node.membership.certificate.issuer_id == founder.membership.mesh.root
        for other in (founder, three, four):
            assert other.sees(node) == "member"
    # what it signed and nobody had seen is refused at once
    with pytest.raises(MembershipError, match="signed by an issuer that was revoked"):
        three.membership.add_member(unseen, net.now)
    # whom it had revoked stays out, for newcomers too
    five = await net.join(founder, "five")
    assert two.id in five.membership.revocations.excluded
    # and it signs nothing any more
    with pytest.raises(MembershipError, match="it is no issuer"):
        one.membership.invite(net.now, addresses=(), ttl_s=60)


async def test_a_node_leaves(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    told = await one.authority.leave(LeaveWish())
    assert (told["told"], told["others"], told["name"]) == (2, 2, "pi")
    assert founder.sees(one) == two.sees(one) == one.sees(one) == "left"
    with pytest.raises(MembershipError, match="left the mesh"):
        two.membership.verify(one.membership.certificate.encode(), net.now)
    removed = one.state.wipe(("*.conf", "discovery"))
    assert {"node.key", "mesh.json", "certificate", "networkkeys.json"} <= set(removed)
    assert [path.name for path in one.state.path.iterdir()] == ["lock"]
    names = {entry["name"]: entry["state"] for entry in founder.authority.members()["members"]}
    assert names == {"box": "member", "pi": "left", "pi-2": "member"}


async def test_the_daemon_hears_of_a_farewell_after_it_was_answered(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    net.off.add(two.id)
    async with founder.running():
        await asyncio.sleep(0)
        before = founder.changes
        raw = messages.encode(messages.Depart(one.membership.depart(net.now).encode()))
        await founder.control.answer(one.id, messages.PROTOCOL, raw)
        assert founder.sees(one) == "left"
        assert founder.changes == before
        await net.until(lambda: founder.changes > before)


async def test_who_may_not_simply_leave(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    assert "root key lies here" in await line(founder.authority.leave(LeaveWish()), MembershipError)
    await offline(net, founder)
    assert "only issuer" in await line(founder.authority.leave(LeaveWish()), MembershipError)
    assert one.sees(founder) == "member"
    await founder.authority.leave(LeaveWish(force=True))
    assert one.sees(founder) == "left"


# ------------------------------------------------------------------ network key


async def test_a_key_change_reaches_everyone_and_cuts_nobody_off(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    first = founder.membership.network_keys(net.now).sending
    net.off.add(two.id)
    async with one.running():
        told = await founder.authority.rotate(RotateWish(3600.0))
        ring = founder.membership.key_ring
        await net.until(lambda: one.membership.key_ring == ring)
    assert told["active_at"] == net.now + 1800
    for node in (founder, one, two):
        assert node.membership.network_keys(net.now).sending == first
    net.now += 1800
    new = founder.membership.network_keys(net.now).sending
    assert new != first
    assert one.membership.network_keys(net.now) == founder.membership.network_keys(net.now)
    assert first in one.membership.network_keys(net.now).accepting
    net.off.clear()
    await two.sync(one)
    assert two.membership.network_keys(net.now).sending == new
    net.now += 1800
    for node in (founder, one, net.restart(two)):
        assert node.membership.network_keys(net.now).accepting == (new,)


async def test_a_second_change_waits_for_the_first(net: Net) -> None:
    founder, _ = await mesh(net)
    await founder.authority.rotate(RotateWish(3600.0))
    words = await line(founder.authority.rotate(RotateWish(3600.0)), MembershipError)
    assert "being changed already, for another 1 hour" in words
    assert "cannot be 300 seconds" in await line(
        founder.authority.rotate(RotateWish(300.0)), UsageError
    )
    net.now += 3600
    assert (await founder.authority.rotate(RotateWish(10.0, force=True)))["generation"] == 2


async def test_a_newcomer_in_the_middle_of_a_change_has_both_keys(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    await founder.authority.rotate(RotateWish(3600.0))
    late = await net.join(founder, "late", at=one)
    assert late.membership.network_keys(net.now) == founder.membership.network_keys(net.now)
    net.now += 1801
    later = await net.join(founder, "later", at=one)
    assert later.membership.network_keys(net.now) == founder.membership.network_keys(net.now)


# --------------------------------------------------------------------- renewal


async def test_certificates_are_renewed_by_whichever_issuer_is_up(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    await founder.authority.grant(GrantWish("pi-2", roles=("worker", "issuer")))
    before = one.membership.certificate
    net.now += 59 * DAY_S
    await one.tick()
    assert one.membership.certificate == before
    net.now += 6 * DAY_S  # the latest by spread
    net.off.add(founder.id)
    await one.tick()
    after = one.membership.certificate
    assert after.issuer_id == two.id
    assert after.not_after == before.not_after + 65 * DAY_S
    assert (after.name, after.ipv4_counter, after.tags) == (
        before.name, before.ipv4_counter, before.tags)  # fmt: skip
    net.off.clear()
    await founder.sync(one)
    assert two.membership.find(one.id) == one.membership.find(one.id)


async def test_no_issuer_is_asked_again_and_again(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    net.now += 70 * DAY_S
    net.off.add(founder.id)
    await one.tick()
    asked = len(one.control.asked)
    assert asked == 1
    assert one.authority._upkeep.trouble is not None
    await one.tick()
    assert len(one.control.asked) == asked
    net.now += 20
    await one.tick()
    assert len(one.control.asked) == asked + 1
    items = [item.code for item in one.authority.health(net.now)]
    assert items == []
    net.now += 10 * DAY_S
    (item,) = one.authority.health(net.now)
    assert item.code == "certificate-ends"
    assert "ends in 9 days (the node cannot be reached)" in item.text
    net.off.clear()
    await one.tick()
    assert one.authority.health(net.now) == []
    assert one.authority._upkeep.trouble is None


async def test_with_the_root_key_here_the_grant_goes_on_for_ever(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    for _ in range(24):
        net.now += 20 * DAY_S
        for node in (founder, one):
            await node.tick()
    assert founder.sees(founder) == "member"
    left_s = founder.membership.grant_left_s(net.now)
    assert left_s is not None and left_s > 100 * DAY_S
    assert founder.sees(one) == one.sees(founder) == "member"


async def test_without_the_root_key_it_is_said_long_before_the_end(net: Net) -> None:
    founder = net.found()
    safe = await offline(net, founder)
    net.now += 180 * DAY_S
    await founder.tick()
    assert founder.authority.health(net.now) == []
    net.now += 4 * DAY_S
    (item,) = founder.authority.health(net.now)
    assert item.code == "grant-ends"
    assert "for another 181 days" in item.text
    assert "agent grant box --root-key FILE" in item.what_to_do
    await founder.authority.grant(GrantWish("box", root_key=str(safe)))
    assert founder.authority.health(net.now) == []
    assert founder.membership.grant_left_s(net.now) == 365 * DAY_S


async def test_another_node_with_the_root_key_renews_an_issuer(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    await founder.authority.grant(GrantWish("pi", roles=("worker", "issuer")))
    before = one.membership.certificate
    net.now += 265 * DAY_S
    await founder.tick()
    await one.tick()
    assert one.membership.certificate.not_after > before.not_after
    assert one.membership.certificate.own_grant != before.own_grant


async def test_names_that_two_issuers_gave_twice_are_settled(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    await founder.authority.grant(GrantWish("pi", roles=("worker", "issuer")))
    net.off.add(one.id)
    here = await net.join(founder, "twin")
    net.off = {founder.id, here.id}
    there = await net.join(one, "twin")
    assert here.name == there.name == "twin"
    net.off.clear()
    low, high = sorted((here, there), key=lambda node: node.id)
    for node in (founder, one, here, there):
        for other in (here, there):
            node.membership.add_member(other.membership.certificate, net.now)
    net.now += 1
    await low.tick()
    await high.tick()
    assert (low.name, high.name) == ("twin", "twin-2")
    for node in (founder, one):
        assert node.name_of(low) == "twin"
        assert node.name_of(high) == "twin-2"


async def test_an_issuer_takes_over_from_one_that_left(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    await founder.authority.grant(GrantWish("pi", roles=("worker", "issuer")))
    await one.authority.revoke(RevokeWish("pi-2", "stolen"))
    await one.authority.leave(LeaveWish())
    await founder.tick()
    own = founder.membership.revocations.lists[(founder.id.ed25519, False)]
    assert [entry.node for entry in own.entries] == [two.id.ed25519]
    assert own.entries[0].reason == "stolen"


async def test_an_issuer_restored_from_a_backup_gets_its_list_back(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    backup = (founder.state.path / "revocations.json").read_bytes()
    await founder.authority.revoke(RevokeWish("pi"))
    (founder.state.path / "revocations.json").write_bytes(backup)
    founder = net.restart(founder)
    assert founder.sees(one) == "member"
    three = await net.join(founder, "three")
    await founder.authority.revoke(RevokeWish("three"))
    # the same number, other nodes: nobody believes it, until the issuer has both
    assert two.sees(three) == "member"
    await founder.sync(two)
    for node in (founder, two):
        assert node.sees(one) == node.sees(three) == "revoked"


async def test_the_dead_are_forgotten(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    await founder.authority.revoke(RevokeWish("pi"))
    net.now += 100 * DAY_S
    await founder.tick()
    assert founder.sees(two) == "expired"
    net.now += 25 * DAY_S
    await founder.tick()
    assert founder.membership.find(one.id) is founder.membership.find(two.id) is None
    assert one.id in founder.membership.revocations.excluded


# ------------------------------------------------------------- links and the root key


async def test_a_link_that_comes_up_brings_what_was_missed(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    net.off.add(two.id)
    await founder.authority.revoke(RevokeWish("pi"))
    net.off.clear()
    async with two.running(), founder.running():
        two.authority.link_changed(founder.id, True)
        await net.until(lambda: two.sees(one) == "revoked")
        syncs = two.control.asked.count((founder.id, messages.PROTOCOL))
        two.authority.link_changed(founder.id, False)
        two.authority.link_changed(founder.id, True)
        assert not two.authority._upkeep._syncs  # that was only just done
        assert two.control.asked.count((founder.id, messages.PROTOCOL)) == syncs


async def test_who_is_asked_learns_what_the_asker_has(net: Net) -> None:
    founder, (one, two) = await mesh(net)
    net.off.add(two.id)
    await founder.authority.revoke(RevokeWish("pi"))
    net.off.clear()
    async with two.running():
        await founder.sync(two)
        await net.until(lambda: two.sees(one) == "revoked")


async def test_time_alone_tells_the_daemon(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    left_s = one.membership.certificate_left_s(net.now)
    net.now += left_s - 0.05
    net.off.add(founder.id)
    async with founder.running():
        await asyncio.sleep(0.01)
        before = founder.changes
        net.now += 1
        await net.until(lambda: founder.changes > before)
    assert founder.sees(one) == "expired"


async def test_the_root_key_goes_into_its_safe(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    net.now += 2 * DAY_S
    before = founder.membership.grant_left_s(net.now)
    assert "no absolute path" in await line(
        founder.authority.move_root_key(MoveRootKeyWish("safe.key")), UsageError
    )
    safe = await offline(net, founder)
    assert not (founder.state.path / "root.key").exists()
    assert before is not None
    assert founder.membership.grant_left_s(net.now) == before + 2 * DAY_S
    assert founder.name_of(one) == "pi"
    assert "not on this node" in await line(
        founder.authority.move_root_key(MoveRootKeyWish(str(safe))), MembershipError
    )
    assert net.restart(founder).membership.root_key is None
    other = net.folder / "other.key"
    other.write_bytes((one.state.path / "node.key").read_bytes())
    other.chmod(0o600)
    assert "does not hold this mesh's root key" in await line(
        founder.authority.grant(GrantWish("box", root_key=str(other))), UsageError
    )
    assert "there is no key file" in await line(
        founder.authority.grant(GrantWish("box", root_key=str(net.folder / "gone"))), StateError
    )


async def test_nothing_is_told_without_a_control_plane(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    founder.control.up = False
    await founder.authority.revoke(RevokeWish("pi"))
    assert founder.sees(one) == "revoked"


async def test_a_key_comes_over_the_overlay_to_who_heard_of_nothing(net: Net) -> None:
    founder, (one, _) = await mesh(net)
    net.off.add(one.id)
    await founder.authority.rotate(RotateWish(3600.0))
    net.now += 7200
    before = one.changes
    assert await one.authority.take_keys(founder.authority.keys_answer())
    assert one.changes == before + 1
    assert one.membership.network_keys(net.now) == founder.membership.network_keys(net.now)
    assert not await one.authority.take_keys(founder.authority.keys_answer())
    with pytest.raises(PeerError):
        await one.authority.take_keys(b"junk")
