"""Which files an engine may open, by what is known of its machine."""

from __future__ import annotations

from agent.engine import reach
from agent.engine.reach import READ_DIR, READ_FILE, WRITE_FILE, Allowed, Facts

HOME, STATE = "/home/ann", "/var/lib/covey"
FACTS = Facts(
    models=(f"{STATE}/parts/a.gguf", "/data/models"),
    code=("/opt/covey/lib", f"{HOME}/.venv/lib/python3.11/site-packages", "/srv/covey/agent"),
    kept=(HOME, STATE),
)  # fmt: skip


def rights(facts: Facts, path: str) -> int:
    """Return all rights over a path: those over it, and over the folders that it lies in."""
    found = 0
    for each in reach.allowed(facts):
        if path == each.path or path.startswith(each.path.rstrip("/") + "/"):
            found |= each.rights
    return found


def test_models_and_code_are_read_and_nothing_is_written() -> None:
    for path in (*FACTS.models, *FACTS.code, "/usr/lib/libc.so.6", "/proc/self/maps", "/sys/bus"):
        assert rights(FACTS, path) == READ_FILE | READ_DIR, path
    writable = [each.path for each in reach.allowed(FACTS) if each.rights & ~reach.READ]
    assert writable == ["/dev/null"]


def test_keys_homes_and_other_processes_are_closed() -> None:
    for path in (
        f"{STATE}/key", f"{STATE}/parts/b.gguf", f"{HOME}/.ssh/id_ed25519", "/etc/shadow",
        "/etc/passwd", "/root", "/tmp", "/run/covey.sock", "/proc/1/environ", "/dev/mem",
        "/dev/nvidia0", "/sys/kernel/debug", "/sys/firmware", "/var/log/syslog", "/",
    ):  # fmt: skip
        assert rights(FACTS, path) == 0, path


def test_a_path_of_pythons_that_holds_what_is_kept_is_left_out() -> None:
    wide = Facts(models=(), code=("/", "/home", HOME, "/var/lib", f"{STATE}/lib"), kept=FACTS.kept)
    for path in ("/", f"{HOME}/.ssh/id_ed25519", f"{STATE}/identity.key"):
        assert rights(wide, path) == 0
    assert rights(wide, f"{STATE}/lib/package.py") == reach.READ
    # Whoever is called like the home, but is not it.
    assert rights(Facts((), ("/home/an",), (HOME,)), "/home/an/x.py") == reach.READ


def test_a_gpus_nodes_are_written_to_and_its_kernels_are_kept() -> None:
    facts = Facts((), (), (), ("/dev/dri", "/dev/nvidia0"), f"{STATE}/engine/kernels")
    assert rights(facts, "/dev/dri/renderD128") & WRITE_FILE
    assert rights(facts, "/dev/nvidia0") & reach.IOCTL_DEV
    assert rights(facts, f"{STATE}/engine/kernels/1/2") & WRITE_FILE
    assert rights(facts, f"{STATE}/engine/selftest.json") == 0


def test_a_kernel_gets_the_rights_that_it_knows() -> None:
    every = Allowed("/x", ~0)
    # By linux/landlock.h: 13 at first, then REFER, TRUNCATE and IOCTL_DEV.
    assert [every.of(n, is_folder=True).bit_count() for n in range(1, 8)] == [
        13,
        14,
        15,
        15,
        16,
        16,
        16,
    ]
    # Over a file: execute, write, read, truncate, ioctl.
    assert [every.of(n, is_folder=False).bit_count() for n in range(1, 6)] == [3, 3, 4, 4, 5]
    for version in range(1, 8):
        assert not any(each.of(version, is_folder=True) & 1 for each in reach.allowed(FACTS))
