"""System calls that an engine never makes, and those that it makes in one way alone. A core.

Numbers for x86_64 and for aarch64, None where one of them has no such call. For `seccomp.py`.

What is named here is refused, and everything else is let through. The other way round is what a
container does whose one program is known. Here GPU drivers run in the process, of several makers
and many versions, and two C libraries; none of them says which calls it makes. A list of what they
may do would be wrong on some machine, and what it stops there is a model that does not load.
"""

from __future__ import annotations

from typing import Final

Numbers = tuple[int | None, int | None]
MACHINES: Final = ("x86_64", "aarch64")

# New calls have had the same number on all machines since 5.1. What came after this kernel's is
# unknown here, and is answered as an older kernel would: programs do without it then.
FIRST_UNKNOWN: Final = 470  # behind 6.18's last

REFUSED: Final[dict[str, Numbers]] = {
    # No other program, and no process that would outlive the engine.
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    # Nothing of other processes: their memory, descriptors and signals.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # No namespace, no mount, no way to a file but by its path.
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # What Landlock leaves to everybody: to change whose files are, and how long some are.
    "mknod": (133, None), "mknodat": (259, 33), "truncate": (76, 45), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    # Nothing of the machine: its kernel, clock, names and ports.
    "bpf": (321, 280), "perf_event_open": (298, 241), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "syslog": (103, 116), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "lsm_set_self_attr": (460, 460),
    # Parts of the kernel through which others got out before, and that nothing here needs.
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "memfd_secret": (447, 447), "personality": (135, 92),
}  # fmt: skip

# Looked at by their arguments (`seccomp.py`).
LOOKED_AT: Final[dict[str, Numbers]] = {
    "clone": (56, 220), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261),
    "kcmp": (312, 272), "socket": (41, 198), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
}  # fmt: skip

CLONE3: Final = 435
# By which a filter is set.
SECCOMP: Final[Numbers] = (317, 277)
