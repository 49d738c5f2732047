"""The filter of an engine's system calls: a program of classic BPF that the kernel asks. A core.

`program` assembles it; `confine.py` has the kernel take it. Which calls, and why these:
`system_calls.py`. What is refused fails with EPERM, as if the rights for it were missing, so that
a library that tries it for nothing goes on.

The kernel gives the program `struct seccomp_data`: the call's number, the machine whose numbers
these are, and six arguments. Of an argument the lower half is looked at, since the calls here read
no more of it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agent.engine.system_calls import CLONE3, FIRST_UNKNOWN, LOOKED_AT, MACHINES, REFUSED, Numbers

# Codes of classic BPF: load a word, mask it, jump by it, return.
LOAD, AND = 0x20, 0x54
JUMP_EQUAL, JUMP_AT_LEAST = 0x15, 0x35
RETURN = 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000  # the latter with an errno in its lower half
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16
AUDIT_MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of x86_64's x32, whose pointers have 32 bits, begin here; aarch64 has none.
X32: Final = 0x40000000

# A thread, and no namespace of any kind: mount, cgroup, uts, ipc, user, pid, net.
_CLONE_THREAD = 0x00010000
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x70000000
_INET, _INET6, _STREAM, _TYPE_MASK, _TCP = 2, 10, 1, 0xF, 6
_FAST_OPEN = 0x20000000  # connects without `connect`
_ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class Instruction:
    """One instruction: `jump_true` and `jump_false` count those that are left out."""

    code: int
    value: int
    jump_true: int = 0
    jump_false: int = 0

    def encode(self) -> bytes:
        """Return it as `struct sock_filter`."""
        return struct.pack("=HBBI", self.code, self.jump_true, self.jump_false, self.value)


@dataclass(frozen=True)
class Only:
    """A call is let through if argument `index`, masked, is one of `values`."""

    index: int
    values: tuple[int, ...]
    mask: int = _ALL


@dataclass(frozen=True)
class Wants:
    """What one engine does beyond the others, or not.

    `pid` is its own; it may send signals to itself. `by_thread`: its C library does that by thread
    alone (musl). `connects`: to others over TCP. `accepts`: from others that it has not met yet.
    """

    pid: int
    by_thread: bool = False
    connects: bool = True
    accepts: bool = True


def program(machine: str, wants: Wants) -> tuple[Instruction, ...]:
    """Return the filter for an engine; KeyError for a machine whose numbers are not known."""
    calls: dict[int | None, tuple[Only, ...]]
    calls = {_number(machine, numbers): () for numbers in REFUSED.values()}
    calls |= {_number(machine, LOOKED_AT[name]): only for name, only in _looked_at(wants).items()}
    found = [
        Instruction(LOAD, MACHINE_AT),
        Instruction(JUMP_EQUAL, AUDIT_MACHINES[machine], jump_true=1),
        _fail(errno.EPERM),
        Instruction(LOAD, NUMBER_AT),
    ]
    if machine == "x86_64":
        found += [Instruction(JUMP_AT_LEAST, X32, jump_false=1), _fail(errno.EPERM)]
    # What clone3 is asked lies in memory that no filter sees; without it clone is called.
    clone3 = Instruction(JUMP_EQUAL, CLONE3, jump_false=1)
    for absent in (Instruction(JUMP_AT_LEAST, FIRST_UNKNOWN, jump_false=1), clone3):
        found += [absent, _fail(errno.ENOSYS)]
    for number, only in calls.items():
        if number is not None:
            check = [*_checks(only)]
            found += [Instruction(JUMP_EQUAL, number, jump_false=len(check)), *check]
    return (*found, Instruction(RETURN, ALLOW))


def encode(instructions: tuple[Instruction, ...]) -> bytes:
    """Return a program as the kernel takes it."""
    return b"".join(instruction.encode() for instruction in instructions)


def _looked_at(wants: Wants) -> dict[str, tuple[Only, ...]]:
    """Return what is asked of arguments; a call of which nothing could be right is refused."""
    own = (Only(0, (wants.pid,)),)
    found: dict[str, tuple[Only, ...]] = {
        "clone": (Only(0, (_CLONE_THREAD,), _CLONE_THREAD | _NAMESPACES),),
        "kill": own, "tgkill": own, "rt_sigqueueinfo": own, "rt_tgsigqueueinfo": own,
        "prlimit64": (Only(0, (0, wants.pid)),),
        # Mesa's drivers compare descriptors of their own.
        "kcmp": (*own, Only(1, (wants.pid,))),
        # TCP, and none of all others: the agent's own socket is one of Unix's.
        "socket": (
            Only(0, (_INET, _INET6)), Only(1, (_STREAM,), _TYPE_MASK), Only(2, (0, _TCP)),
        ),
        "sendto": (Only(3, (0,), _FAST_OPEN),), "sendmsg": (Only(2, (0,), _FAST_OPEN),),
        "sendmmsg": (Only(3, (0,), _FAST_OPEN),),
    }  # fmt: skip
    if not wants.by_thread:
        found["tkill"] = ()
    if not wants.connects:
        found["connect"] = ()
    if not wants.accepts:
        found |= {"bind": (), "listen": ()}
    if not (wants.connects or wants.accepts):
        found["socket"] = ()
    return found


def _checks(only: tuple[Only, ...]) -> Iterator[Instruction]:
    """Give the instructions that end with a verdict on one call."""
    for each in only:
        yield Instruction(LOAD, ARGUMENTS_AT + 8 * each.index)
        if each.mask != _ALL:
            yield Instruction(AND, each.mask)
        for left, value in zip(range(len(each.values), 0, -1), each.values, strict=True):
            yield Instruction(JUMP_EQUAL, value, jump_true=left)
        yield _fail(errno.EPERM)
    yield Instruction(RETURN, ALLOW) if only else _fail(errno.EPERM)


def _fail(number: int) -> Instruction:
    return Instruction(RETURN, FAIL | number)


def _number(machine: str, numbers: Numbers) -> int | None:
    return numbers[MACHINES.index(machine)]
