"""Have Landlock refuse this process every file but some: Linux's own, without privileges.

For `confine.py` and `enclose.py`. It holds for the calling thread and those that it starts, and
cannot be undone. What was opened or loaded before stays usable.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from agent.engine.reach import Allowed, known

# The same numbers on every architecture that Linux added after 2019's unification.
_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_SCOPED_SINCE, _SCOPED = 6, 0b11  # abstract sockets and signals

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# A rule is for an inode. Some file systems (/proc, 9p) make another one of the same file once
# nobody uses the first, so all are held open as long as this process lives.
_held: list[int] = []


def version() -> int:
    """Return which version of Landlock this kernel has; 0: none."""
    return max(0, int(_libc.syscall(_SYS_CREATE_RULESET, None, 0, _ASK_VERSION)))


def restrict(allowed: Iterable[Allowed]) -> str:
    """Refuse all other files; returns why that was not possible, empty: it was.

    What is allowed and not there is passed over. The process must have given up new privileges.
    """
    if not (found := version()):
        return _why()
    # Rights over files, over ports (left alone), and the scope.
    attributes = struct.pack("QQQ", known(found), 0, _SCOPED)
    if found < _SCOPED_SINCE:
        attributes = attributes[:8]
    rules = _libc.syscall(_SYS_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return _why()
    try:
        for each in allowed:
            if not _add(rules, each, found):
                return _why()
        return _why() if _libc.syscall(_SYS_RESTRICT_SELF, rules, 0) else ""
    finally:
        os.close(rules)


def _add(rules: int, each: Allowed, version: int) -> bool:
    try:
        place = os.open(each.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    rights = each.of(version, is_folder=stat.S_ISDIR(os.fstat(place).st_mode))
    rule = struct.pack("=Qi", rights, place)
    _held.append(place)
    return not _libc.syscall(_SYS_ADD_RULE, rules, _PATH_BENEATH, rule, 0)


def _why() -> str:
    return f"no Landlock ({os.strerror(ctypes.get_errno())})"
