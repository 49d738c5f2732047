"""Take from an engine process what it does not need: the network, files, rights.

What `enclose.py` has all engines give up is here: rights, and system calls. `own_network` and
`confine`, which leave no files at all, are for `rpc_server.py`, which runs code of llama.cpp that
is known to be unsafe with hostile input. All of it is Linux's own, without privileges: a network
namespace, Landlock, seccomp, capabilities, limits. It holds for this thread and for those that it
starts later, so call it before any other starts; it cannot be undone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import socket
import struct
import sys

from agent.engine import landlock, seccomp
from agent.engine.system_calls import MACHINES, SECCOMP
from agent.errors import EnvironmentFault

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_MAX = 64
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2
_SECCOMP_SET_MODE_FILTER = 1
# For all threads; and without the speculation's curbs that kernels before 5.16 put on whoever has a
# filter, which slow llama.cpp: this one keeps no secret of one part of the process from another.
_SECCOMP_FLAGS = 1 << 0 | 1 << 2
_OPEN_FILES = 256

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def own_network() -> None:
    """Move into a network of its own that has nothing but a loopback; open sockets stay usable.

    Nobody outside reaches what listens there, and nobody outside is reached. Raises
    EnvironmentFault where the system allows no such network.
    """
    if _libc.unshare(_CLONE_NEWNET) and _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise _no_network(os.strerror(ctypes.get_errno()))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            asked = struct.pack("16sH14x", b"lo", 0)
            name, flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked))
            up = struct.pack("16sH14x", name, flags | _IFF_UP)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, up)
    except OSError as error:
        raise _no_network(error.strerror or str(error)) from None


def _no_network(why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"this process cannot have a network namespace of its own ({why}).",
        hint="Run the agent as root, or allow user namespaces to its user.",
    )


def confine() -> tuple[str, ...]:
    """Give up files, rights, core dumps and signals to others; return what could not be given up.

    What was opened or loaded before stays usable.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    missing = no_new_rights()
    if why := landlock.restrict(()):
        missing.append(f"files: {why}")
    missing += give_up_rights()
    missing += filter_calls()
    return tuple(missing)


def no_new_rights() -> list[str]:
    """Never get rights by starting a program; returns what failed."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return [f"no_new_privs ({os.strerror(ctypes.get_errno())})"]
    return []


def filter_calls(*, connects: bool = True, accepts: bool = True) -> list[str]:
    """Have the kernel refuse all threads the system calls that engines never make; what failed.

    `connects` and `accepts`: whether it still will, over TCP. The process must have given up new
    privileges.
    """
    machine = platform.machine()
    if machine not in MACHINES or sys.byteorder != "little":
        return [f"system calls: those of {machine} are not known here"]
    wants = seccomp.Wants(os.getpid(), _signals_by_thread(), connects, accepts)
    program = seccomp.program(machine, wants)
    instructions = seccomp.encode(program)
    room = ctypes.create_string_buffer(instructions, len(instructions))
    told = struct.pack("HP", len(program), ctypes.addressof(room))
    number = SECCOMP[MACHINES.index(machine)]
    late = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FLAGS, told)
    if late > 0:
        return ["system calls: another thread has filters of its own"]
    if late:
        return [f"system calls: no seccomp ({os.strerror(ctypes.get_errno())})"]
    return []


def _signals_by_thread() -> bool:
    """Say whether the C library raises signals by `tkill`: all but glibc."""
    try:
        return not os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return True


def give_up_rights(*, reads_all: bool = False) -> list[str]:
    """Drop every capability, also those that a program could be given later; what failed.

    `reads_all`: of root's, that over reading others' files stays.
    """
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(_CAPABILITIES_MAX):
        # Refused beyond the last one, and to who may not; then there is none to be given either.
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    kept = _reading(header) if reads_all else 0
    if _libc.capset(header, struct.pack("II16x", kept, kept)):
        return [f"capabilities ({os.strerror(ctypes.get_errno())})"]
    return []


def _reading(header: bytes) -> int:
    """Return the least of this process's capabilities by which it reads others' files, or 0."""
    found = ctypes.create_string_buffer(24)
    if _libc.capget(header, found):
        return 0
    permitted: int = struct.unpack_from("4xI", found)[0]
    # Containers often have the second alone.
    return permitted & _CAP_DAC_READ_SEARCH or permitted & _CAP_DAC_OVERRIDE
