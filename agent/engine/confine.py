"""Take from an engine process what it does not need: the network, files, rights.

Every engine gives up the rights of an agent that is no root (`give_up_rights`). The rest is for
`rpc_server.py`, which runs code of llama.cpp that is known to be unsafe with hostile input. All of
it is Linux's own, without privileges: a network namespace, Landlock, capabilities, limits. It holds
for this thread and for those that it starts later, so call it before any other starts; it cannot be
undone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import struct

from agent.errors import EnvironmentFault

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_MAX = 64
# The same numbers on every architecture that Linux added after 2019's unification.
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
# How many rights over files each version of Landlock knows, and what the last one adds to them.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_SCOPED_SINCE, _SCOPED = 6, 0b11  # abstract sockets and signals
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
    missing = []
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing.append(f"no_new_privs ({os.strerror(ctypes.get_errno())})")
    missing += _give_up_files()
    missing += give_up_rights()
    return tuple(missing)


def _give_up_files() -> list[str]:
    """Have Landlock refuse every file: a set of rules that handles all rights and allows none."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return [f"files: no Landlock ({os.strerror(ctypes.get_errno())})"]
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    scoped = version >= _SCOPED_SINCE
    # Rights over files, over ports (left alone: its network is its own), and the scope.
    attributes = struct.pack("QQQ", rights, 0, _SCOPED) if scoped else struct.pack("Q", rights)
    rules = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return [f"files: no Landlock ({os.strerror(ctypes.get_errno())})"]
    failed = _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, rules, 0)
    why = os.strerror(ctypes.get_errno())
    os.close(rules)
    if failed:
        return [f"files: no Landlock ({why})"]
    return (
        []
        if scoped
        else ["signals to its user's other processes: this kernel's Landlock is too old"]
    )


def give_up_rights() -> list[str]:
    """Drop every capability, also those that a program could be given later; what failed."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(_CAPABILITIES_MAX):
        # Refused beyond the last one, and to who may not; then there is none to be given either.
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)):
        return [f"capabilities ({os.strerror(ctypes.get_errno())})"]
    return []
