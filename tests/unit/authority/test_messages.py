"""What crosses the wire: read whole, or refused with one kind of error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.authority import messages
from agent.authority.wishes import RevokeWish
from agent.errors import CoveyError, PeerError
from agent.membership import join
from agent.membership.join import JoinRequest
from agent.membership.revocation import Have

if TYPE_CHECKING:
    from conftest import Net

HAVE = Have(b"s" * 32, False, 3, b"d" * 16)
REQUESTS: list[messages.Request] = [
    messages.Renew(b"certificate", b"other"),
    messages.Reissue(b"n" * 32, name="pi", tags=("a",)),
    messages.Revoke(b"n" * 32, "lost"),
    messages.Invite(60.0, 1, ("worker",), ()),
    messages.Rotate(3600.0),
    messages.Join(b"request"),
    messages.Depart(b"farewell"),
    messages.Sync(b"certificate", (HAVE,)),
    messages.GetKeys(),
    messages.Push(b"certificate"),
]
NEWS: list[messages.News] = [
    messages.NewCertificates((b"certificate",)),
    messages.NewList(b"list"),
    messages.NewListThere(HAVE),
    messages.NewKey(b"change"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_survive(request_: messages.Request) -> None:
    assert messages.decode_request(messages.encode(request_)) == request_


@pytest.mark.parametrize("news", NEWS, ids=lambda n: type(n).__name__)
def test_news_survives(news: messages.News) -> None:
    assert messages.decode_news(messages.encode(news)) == news


def test_an_announcement_fits_a_record() -> None:
    raw = messages.encode(HAVE)
    assert messages.decode_have(raw) == HAVE
    assert len(raw) < 100


def test_an_answer_of_another_kind_is_nonsense() -> None:
    raw = messages.encode(messages.Done())
    assert messages.decode_answer(raw, messages.Done) == messages.Done()
    with pytest.raises(PeerError, match="makes no sense"):
        messages.decode_answer(raw, messages.Certified)


@pytest.mark.parametrize(
    "body",
    [
        {"say": "renew"},
        {"say": "renew", "certificate": bytes(431)},
        {"say": "renew", "certificate": b"", "more": 1},
        {"say": "revoke", "node": bytes(31)},
        {"say": "revoke", "node": bytes(32), "reason": "x" * 257},
        {"say": "join", "request": bytes(1025)},
        {"say": "dance"},
        {},
        [],
    ],
)
def test_what_does_not_fit_is_refused(body: object) -> None:
    raw = msgspec.msgpack.encode(body)
    for decode in (messages.decode_request, messages.decode_news):
        with pytest.raises(PeerError, match="makes no sense"):
            decode(raw)


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_peer_error(raw: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_news, messages.decode_have):
        with pytest.raises(PeerError):
            decode(raw)


def mutated(data: st.DataObject, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_nothing_but_covey_errors_escapes_from_what_others_send(
    net: Net, data: st.DataObject
) -> None:
    """Requests, joins, gossip and announcements: random, and real ones with bytes changed."""
    if not net.nodes:
        founder = net.found()
        await net.join(founder)
        lost = await net.join(founder)
        await founder.authority.revoke(RevokeWish(lost.key.id.short))
    founder, member = net.nodes[:2]
    net.now += 60  # so that nobody is refused for asking too often
    ticket = founder.membership.invite(net.now, addresses=(), ttl_s=60)
    list_ = founder.membership.revocations.lists[(founder.id.ed25519, False)]
    certificate = member.membership.certificate.encode()
    real = [
        *(messages.encode(request) for request in REQUESTS),
        messages.encode(messages.Renew(certificate)),
        messages.encode(messages.Push(certificate)),
        messages.encode(messages.NewCertificates((certificate,))),
        messages.encode(messages.NewList(list_.encode())),
        JoinRequest.to(ticket, "pi", member.key).encode(),
    ]
    raw = data.draw(
        st.one_of(st.binary(max_size=100), st.sampled_from(real).map(lambda r: mutated(data, r)))
    )
    desk = founder.authority._desk
    for answer in (desk.answer(member.id, raw), desk.join(member.id, raw)):
        try:
            await answer
        except CoveyError as error:
            assert error.message
    await founder.authority._upkeep.herald.take(member.id, raw)
    with contextlib.suppress(PeerError):
        founder.authority.heard(member.id, raw)
    assert founder.membership.is_member(founder.id, net.now)
    assert len(founder.membership.members()) <= 4


async def test_the_join_protocol_answers_nothing_else(net: Net) -> None:
    founder = net.found()
    for request in REQUESTS:
        with pytest.raises(PeerError, match="join request is damaged"):
            await founder.control.answer(
                (await net.join(founder)).id, join.PROTOCOL, messages.encode(request)
            )
