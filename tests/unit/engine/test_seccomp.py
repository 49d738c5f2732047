"""The filter of system calls, run by an interpreter of classic BPF on every number there is."""

from __future__ import annotations

import errno
import platform
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine import seccomp, system_calls
from agent.engine.seccomp import ALLOW, AUDIT_MACHINES, FAIL, X32, Wants
from agent.engine.system_calls import FIRST_UNKNOWN, LOOKED_AT, MACHINES, REFUSED

PID = 4321
REFUSE, ABSENT = FAIL | errno.EPERM, FAIL | errno.ENOSYS
WANTS = {
    "a ring's": Wants(PID),
    "an embedder's": Wants(PID, connects=False),
    "one that has met its neighbours": Wants(PID, connects=False, accepts=False),
    "musl's": Wants(PID, by_thread=True),
}
PROGRAMS = {
    (machine, name): seccomp.encode(seccomp.program(machine, wants))
    for machine in MACHINES
    for name, wants in WANTS.items()
}
ENGINES = pytest.mark.parametrize("name", WANTS)
ALL_MACHINES = pytest.mark.parametrize("machine", MACHINES)
WORDS = st.integers(0, 2**64 - 1)


def verdict(program: bytes, number: int, machine: int, arguments: tuple[int, ...] = ()) -> int:
    """Run a filter on a call, as Linux's kernel/seccomp.c and net/core/filter.c do."""
    data = struct.pack("=IIQ6Q", number, machine, 0, *arguments, *(6 - len(arguments)) * [0])
    instructions = [*struct.iter_unpack("=HBBI", program)]
    assert 0 < len(instructions) <= 4096
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert value % 4 == 0 and value < len(data)
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= value
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if accumulator == value else if_false
        elif code == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            at += if_true if accumulator >= value else if_false
        else:
            assert code == 0x06, "BPF_RET | BPF_K"
            return int(value)


def asked(machine: str, name: str, call: str | int, *arguments: int) -> int:
    number = call
    if isinstance(call, str):
        number = {**REFUSED, **LOOKED_AT}[call][MACHINES.index(machine)] or 0
    assert isinstance(number, int)
    return verdict(PROGRAMS[machine, name], number, AUDIT_MACHINES[machine], arguments)


@ALL_MACHINES
@ENGINES
def test_every_number_is_let_through_but_those_that_are_named(machine: str, name: str) -> None:
    at = MACHINES.index(machine)
    refused = {numbers[at] for numbers in REFUSED.values()}
    # Without arguments these are no thread, no own process, no TCP.
    always = ("clone", "kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "kcmp", "socket")
    refused |= {LOOKED_AT[call][at] for call in always}
    wants = WANTS[name]
    refused |= set() if wants.by_thread else {LOOKED_AT["tkill"][at]}
    refused |= set() if wants.connects else {LOOKED_AT["connect"][at]}
    refused |= set() if wants.accepts else {LOOKED_AT["bind"][at], LOOKED_AT["listen"][at]}
    for number in range(1024):
        found = asked(machine, name, number)
        if number >= FIRST_UNKNOWN or number == system_calls.CLONE3:
            assert found == ABSENT, number
        else:
            assert found == (REFUSE if number in refused else ALLOW), number


@pytest.mark.parametrize("key", PROGRAMS, ids=" ".join)
def test_the_program_is_one_that_the_kernel_takes(key: tuple[str, str]) -> None:
    instructions = [*struct.iter_unpack("=HBBI", PROGRAMS[key])]
    for at, (code, if_true, if_false, _) in enumerate(instructions):
        if code in (0x15, 0x35):
            assert at + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1][0] == 0x06


@given(st.sampled_from([*PROGRAMS]), st.integers(0, 2**32 - 1), st.tuples(*6 * [WORDS]))
def test_whatever_is_asked_gets_one_of_three_answers(
    key: tuple[str, str], number: int, arguments: tuple[int, ...]
) -> None:
    machine = AUDIT_MACHINES[key[0]]
    found = verdict(PROGRAMS[key], number, machine, arguments)
    assert found in (ALLOW, REFUSE, ABSENT)
    if number >= FIRST_UNKNOWN:
        assert found == (REFUSE if key[0] == "x86_64" and number >= X32 else ABSENT)


@given(st.sampled_from([*PROGRAMS]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_numbers_of_another_machine_are_refused(
    key: tuple[str, str], number: int, machine: int
) -> None:
    if machine != AUDIT_MACHINES[key[0]]:
        assert verdict(PROGRAMS[key], number, machine) == REFUSE


def test_programs_of_32_bits_are_refused() -> None:
    i386, arm = 0x40000003, 0x40000028
    for number in range(512):
        assert verdict(PROGRAMS["x86_64", "a ring's"], number, i386) == REFUSE
        assert verdict(PROGRAMS["aarch64", "a ring's"], number, arm) == REFUSE
        assert asked("x86_64", "a ring's", X32 + number) == REFUSE


@ALL_MACHINES
@given(flags=WORDS)
def test_threads_are_made_and_no_process_nor_namespace(machine: str, flags: int) -> None:
    thread, namespaces = 0x00010000, 0x7E020000  # by linux/sched.h
    # What glibc's pthread_create asks for.
    assert asked(machine, "a ring's", "clone", 0x3D0F00) == ALLOW
    fine = flags & thread and not flags & namespaces
    assert asked(machine, "a ring's", "clone", flags) == (ALLOW if fine else REFUSE)
    assert asked(machine, "a ring's", "clone", 17) == REFUSE  # fork: SIGCHLD


@ALL_MACHINES
@pytest.mark.parametrize("call", ["kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"])
@given(pid=WORDS)
def test_signals_go_to_itself_alone(machine: str, call: str, pid: int) -> None:
    assert asked(machine, "a ring's", call, PID) == ALLOW
    assert asked(machine, "a ring's", call, 2**32 - 1) == REFUSE  # everybody
    assert asked(machine, "a ring's", call, pid) == (ALLOW if pid % 2**32 == PID else REFUSE)


@ALL_MACHINES
@given(
    family=st.sampled_from([1, 2, 10, 16, 17, 38, 40]), kind=st.sampled_from([1, 2, 3, 5]),
    flags=st.sampled_from([0, 0x80800]), protocol=st.sampled_from([0, 1, 6, 17, 132, 262]),
)  # fmt: skip
def test_sockets_are_for_tcp(
    machine: str, family: int, kind: int, flags: int, protocol: int
) -> None:
    words = (family, kind | flags, protocol)
    fine = family in (2, 10) and kind == 1 and protocol in (0, 6)
    for name in ("a ring's", "an embedder's"):
        assert asked(machine, name, "socket", *words) == (ALLOW if fine else REFUSE)
    assert asked(machine, "one that has met its neighbours", "socket", *words) == REFUSE


@ALL_MACHINES
@pytest.mark.parametrize(("call", "at"), [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)])
@given(flags=st.integers(0, 2**32 - 1))
def test_nobody_is_connected_to_by_sending(machine: str, call: str, at: int, flags: int) -> None:
    fast_open = 0x20000000
    expected = REFUSE if flags & fast_open else ALLOW
    assert asked(machine, "an embedder's", call, *at * [0], flags) == expected


@ALL_MACHINES
@given(one=st.sampled_from([0, 1, PID]), other=st.sampled_from([0, 1, PID]))
def test_descriptors_are_compared_with_its_own(machine: str, one: int, other: int) -> None:
    expected = ALLOW if one == other == PID else REFUSE
    assert asked(machine, "a ring's", "kcmp", one, other) == expected


@ALL_MACHINES
def test_limits_are_its_own(machine: str) -> None:
    found = [asked(machine, "a ring's", "prlimit64", pid) for pid in (0, PID, 1, PID + 1)]
    assert found == [ALLOW, ALLOW, REFUSE, REFUSE]


def headers() -> dict[str, Path]:
    """Return where this system's kernel headers have the numbers; those of the other may lack."""
    places = {
        "x86_64": (f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h",
                   "/usr/include/asm/unistd_64.h"),
        "aarch64": ("/usr/include/asm-generic/unistd.h",),
    }  # fmt: skip
    found = {name: [Path(path) for path in paths if Path(path).exists()]
             for name, paths in places.items()}  # fmt: skip
    return {name: paths[0] for name, paths in found.items() if paths}


@pytest.mark.parametrize("machine", headers())
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    text = headers()[machine].read_text()
    said = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE))
    at = MACHINES.index(machine)
    ours = {**REFUSED, **LOOKED_AT, "seccomp": system_calls.SECCOMP,
            "clone3": (system_calls.CLONE3,) * 2}  # fmt: skip
    for call, numbers in ours.items():
        if call in said:
            assert numbers[at] == int(said[call]), call
        else:  # only what is newer than the headers, or not there
            assert (numbers[at] or FIRST_UNKNOWN) > int(max(said.values(), key=int)), call
