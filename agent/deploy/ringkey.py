"""What the rings of one deployment are called where each stands for itself. A core.

A deployment of several rings is one wish; each ring has an owner, leases and epochs of its own, as
if it were a deployment. The first one's key is the deployment's name, the others' are name/2,
name/3, …: no deployment has a / in its name. Used by all that keep rings or speak of them.
"""

from __future__ import annotations

# More would not fit a mesh of a few hundred nodes, and each has its beats.
MOST_RINGS = 64


def key_of(name: str, number: int) -> str:
    """Return the key of ring `number` (from 1) of a deployment."""
    return name if number == 1 else f"{name}/{number}"


def keys_of(name: str, rings: int) -> tuple[str, ...]:
    """Return the keys of all rings of a deployment, in order."""
    return tuple(key_of(name, number) for number in range(1, rings + 1))


def split(key: str) -> tuple[str, int]:
    """Return a key's deployment and the ring's number; what is no key of ours is a first ring's."""
    name, _, number = key.rpartition("/")
    # As `key_of` writes it, so that no two keys are one ring's.
    if name and number.isascii() and number.isdecimal() and number[0] != "0" and len(number) < 3:
        return (name, int(number)) if int(number) > 1 else (key, 1)
    return key, 1
