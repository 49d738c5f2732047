"""What is wrong with this node's membership, as health items. Used by `service.py`."""

from __future__ import annotations

from agent.errors import CoveyError
from agent.health import HealthItem
from agent.membership import grant as grants
from agent.membership import spell
from agent.membership.issuing import Membership

# Half a year before the end: time to fetch the root key, and nobody finds out by a failed join.
GRANT_WARNING_S = grants.LIFETIME_S / 2
# Renewal has been due for a sixth of a certificate's life by then.
CERTIFICATE_WARNING = 1 / 6


def faults(membership: Membership, trouble: CoveyError | None, now: float) -> list[HealthItem]:
    """Return what is wrong at `now` (unix seconds); `trouble`: why renewal failed last."""
    found = (_standing(membership, trouble, now), _grant(membership, now), _key(membership, now))
    return [item for item in found if item is not None]


def _standing(membership: Membership, trouble: CoveyError | None, now: float) -> HealthItem | None:
    state = membership.state(membership.key.id, now)
    if state in ("revoked", "left"):
        return HealthItem(
            "not-a-member",
            "error",
            "This node was revoked" if state == "revoked" else "This node has left the mesh",
            "No other member talks to it.",
            "`agent leave` makes it forget this mesh; then it can join with a new ticket.",
        )
    own, left_s = membership.certificate, membership.certificate_left_s(now)
    if left_s > (own.not_after - own.not_before) * CERTIFICATE_WARNING:
        return None
    why = f" ({trouble.message})" if trouble else ""
    return HealthItem(
        "certificate-ends",
        "warning" if left_s > 0 else "error",
        "The certificate is not renewed",
        f"It ends in {spell.duration(left_s)}{why}." if left_s > 0 else "It has expired.",
        trouble.hint if trouble and trouble.hint else "See that an issuer is up.",
    )


def _grant(membership: Membership, now: float) -> HealthItem | None:
    left_s = membership.grant_left_s(now)
    if left_s is None or left_s > GRANT_WARNING_S or membership.root_key is not None:
        return None
    for_another = f"for another {spell.duration(left_s)}" if left_s > 0 else "no more"
    return HealthItem(
        "grant-ends",
        "warning" if left_s > 0 else "error",
        "The right to let others in ends",
        f"Without the root key this node lets others in {for_another}.",
        f"Run `agent grant {membership.certificate.name} --root-key FILE` with the key's file.",
    )


def _key(membership: Membership, now: float) -> HealthItem | None:
    pending = membership.key_ring.pending
    if not pending:
        return None
    left_s = min(change.active_at for change in pending) - now
    when = f"is used in {spell.duration(left_s)}" if left_s > 0 else "is in use"
    return HealthItem(
        "network-key-missing",
        "warning",
        "The new network key is not here yet",
        f"The mesh changes its key; the new one {when}, and no member gave it so far.",
        "It is asked for every few seconds; `agent peers` shows who can be reached.",
    )
