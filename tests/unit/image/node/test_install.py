"""An update is in the other slot as it was signed, or the version that runs is what starts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from updates import CONTENT, SLOT_BYTES, appliance, update

from agent.errors import EnvironmentFault, StateError
from image.node import partial
from image.node.install import install
from image.node.machine import Machine
from image.node.manifest import MAX_BYTES, UpdateRefused
from image.node.slots import Bad, Empty, Good, State, Trial, boot
from image.node.slotstore import SlotStore

ROOT = Path(__file__).parents[4]


def put(
    machine: Machine, raw: bytes, tell: Callable[[str, int, int], None] | None = None,
    start: int = 0,
) -> None:  # fmt: skip
    """Install an update; what is noted meanwhile lies in a folder beside the machine's."""
    install(io.BytesIO(raw).read, machine, tell or (lambda *_: None), run_of(machine), start)


def run_of(machine: Machine) -> Path:
    run = machine.folder / "run"
    run.mkdir(exist_ok=True)
    return run


def state(machine: Machine) -> State:
    return machine.store.read().state


def boots(machine: Machine) -> str | None:
    return boot(state(machine))[1]


def test_it_is_in_the_other_slot_and_on_trial(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    told: list[tuple[str, int, int]] = []
    put(machine, update(), lambda *facts: told.append(facts))
    assert (tmp_path / "slot-b").read_bytes()[: len(CONTENT)] == CONTENT
    assert (tmp_path / "slot-b").stat().st_size == SLOT_BYTES
    assert (tmp_path / "slot-a").read_bytes() == b"old " * (SLOT_BYTES // 4)
    assert state(machine) == State("b", Good(), Trial(3))
    assert machine.version("b") == "0.2.0" and machine.version("a") == "0.1.0"
    assert ("writing", len(CONTENT), len(CONTENT)) in told
    assert told[-1] == ("reading back", len(CONTENT), len(CONTENT))


def test_from_slot_b_it_goes_to_slot_a(tmp_path: Path) -> None:
    machine = appliance(tmp_path, State("b", Bad("tries"), Good()), running="b")
    put(machine, update(content=b"squashfs"))
    assert (tmp_path / "slot-a").read_bytes().startswith(b"squashfs" + bytes(4088) + b"old ")
    assert state(machine) == State("a", Trial(3), Good())


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1])
def test_any_size_is_written_whole(tmp_path: Path, count: int) -> None:
    machine = appliance(tmp_path)
    put(machine, update(content=CONTENT[:count]))
    assert (tmp_path / "slot-b").read_bytes()[:count] == CONTENT[:count]
    assert (tmp_path / "slot-b").stat().st_size == SLOT_BYTES


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "no update of a Covey appliance"),
        (b"<html>\n<body>\n", "no update of a Covey appliance"),
        (update()[:100], "cut short or garbled|not signed|changed since"),
        (update(seed=b"o" * 32), "not signed by a key that this machine trusts"),
        (update().replace(b'"0.2.0"', b'"0.3.0"', 1), "or was changed since"),
        (update(arch="aarch64"), "is for aarch64, and this machine is x86_64"),
        (update("0.1.0"), "not newer than 0.1.0"),
        (update("0.0.9"), "not newer than 0.1.0"),
        (update(content=bytes(SLOT_BYTES + 1)), "has 6291457 bytes, and this disk's slots 6291456"),
        (b"covey-update-1 " + b"x" * 20000, "garbled|more than"),
    ],
)
def test_what_is_refused_changes_nothing(tmp_path: Path, raw: bytes, match: str) -> None:
    machine = appliance(tmp_path)
    run = run_of(machine)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    read = io.BytesIO(raw)
    with pytest.raises(UpdateRefused, match=match):
        install(read.read, machine, lambda *_: None, run)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert list(run.iterdir()) == []
    # Of what is not signed, or not for this machine, no more than a manifest was asked for.
    assert read.tell() <= MAX_BYTES


def test_below_the_floor_of_one_that_proved_itself_is_refused(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    (tmp_path / "floor").write_text("0.3.0\n")
    with pytest.raises(UpdateRefused, match=r"below 0\.3\.0"):
        put(machine, update("0.2.0"))
    (tmp_path / "floor").write_bytes(b"\xff\0")
    put(machine, update("0.2.0"))


def test_the_floor_is_raised_by_what_runs_and_never_falls(tmp_path: Path) -> None:
    put(appliance(tmp_path), update("0.2.0", floor="0.1.5", content=b"x"))
    before = appliance(tmp_path)
    before.raise_floor()
    assert before.floor() == "0.0.0"
    after = appliance(tmp_path, version="0.2.0", running="b")
    after.raise_floor()
    assert after.floor() == "0.1.5"
    (tmp_path / "floor").write_text("0.9.0\n")
    after.raise_floor()
    assert after.floor() == "0.9.0"


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (update()[:-1], f"ends after {len(CONTENT) - 1} of {len(CONTENT)} bytes"),
        (update()[: -len(CONTENT)], "ends after 0 of"),
        (update()[:-5] + b"other", "is not what was signed"),
    ],
)
def test_content_that_is_not_what_was_signed_is_never_booted(
    tmp_path: Path, raw: bytes, match: str
) -> None:
    machine = appliance(tmp_path, State("b", Good(), Good()))
    with pytest.raises(UpdateRefused, match=match):
        put(machine, raw)
    assert state(machine) == State("a", Good(), Empty())
    assert boots(machine) == "a"
    # Not even as a file system, if the slots' state is lost.
    assert (tmp_path / "slot-b").read_bytes()[:4096] == bytes(4096)
    put(machine, update())
    assert boots(machine) == "b"


HEAD_BYTES = len(update()) - len(CONTENT)


def broken(machine: Machine, size: int) -> None:
    with pytest.raises(UpdateRefused, match=f"ends after {size} of"):
        put(machine, update()[: HEAD_BYTES + size])


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20, 3 << 20, len(CONTENT) - 1])
def test_behind_what_came_before_it_goes_on(tmp_path: Path, size: int) -> None:
    machine = appliance(tmp_path)
    broken(machine, size)
    found = partial.read(run_of(machine))
    assert found and found.size == size and boots(machine) == "a"
    told: list[tuple[str, int, int]] = []
    rest = update()[:HEAD_BYTES] + CONTENT[size:]
    put(machine, rest, lambda *facts: told.append(facts), size)
    assert told[0][1] > size and told[-1] == ("reading back", len(CONTENT), len(CONTENT))
    assert (tmp_path / "slot-b").read_bytes()[: len(CONTENT)] == CONTENT
    assert state(machine) == State("b", Good(), Trial(3))
    assert partial.read(run_of(machine)) is None


def test_it_may_break_more_than_once(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    broken(machine, 1 << 20)
    head = update()[:HEAD_BYTES]
    with pytest.raises(UpdateRefused, match=f"ends after {2 << 20} of"):
        put(machine, head + CONTENT[1 << 20 : 2 << 20], start=1 << 20)
    put(machine, head + CONTENT[2 << 20 :], start=2 << 20)
    assert boots(machine) == "b"


def test_what_is_not_as_it_came_is_found_in_the_end_and_forgotten(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    broken(machine, 1 << 20)
    with (tmp_path / "slot-b").open("r+b") as slot:
        slot.seek(9999)
        slot.write(b"other")
    rest = update()[:HEAD_BYTES] + CONTENT[1 << 20 :]
    with pytest.raises(UpdateRefused, match="is not what was signed"):
        put(machine, rest, start=1 << 20)
    assert boots(machine) == "a" and partial.read(run_of(machine)) is None
    put(machine, update())
    assert boots(machine) == "b"


def test_behind_what_did_not_come_nothing_goes_on(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    other = update("0.3.0")
    for raw, start in ((update(), 1 << 20), (other, 1 << 20), (update(), 1000)):
        broken(machine, 1 << 20)
        if start == 1 << 20 and raw is not other:
            partial.take(run_of(machine))
        with pytest.raises(StateError, match="is not here any more"):
            put(machine, raw, start=start)
        assert boots(machine) == "a"


def test_what_follows_the_slots_content_is_left_for_later_versions(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    put(machine, update() + b"more")
    assert boots(machine) == "b"


def test_while_the_running_version_is_on_trial_nothing_is_written(tmp_path: Path) -> None:
    machine = appliance(tmp_path, State("a", Trial(2), Good()))
    with pytest.raises(StateError, match="has not yet proved itself"):
        put(machine, update())
    assert (tmp_path / "slot-b").read_bytes().startswith(b"old ")


def test_dying_at_any_step_the_machine_starts_what_ran(tmp_path: Path) -> None:
    class Death(BaseException):
        pass

    steps: list[tuple[str, int, int]] = []
    put(appliance(tmp_path), update(), lambda *facts: steps.append(facts))
    for dead_at in range(len(steps)):
        machine = appliance(tmp_path)
        seen = iter(range(len(steps)))

        def tell(*_: object, dead_at: int = dead_at, seen: object = seen) -> None:
            if next(seen) == dead_at:  # type: ignore[call-overload]
                raise Death

        with pytest.raises(Death):
            put(machine, update(), tell)
        assert boots(machine) == "a"
        put(machine, update())
        assert boots(machine) == "b"


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import updates
from image.node import partial
from image.node.install import install
machine = updates.appliance(Path({folder!r}))
{first}
tell = lambda phase, done, total: print(phase, done, flush=True)
install(sys.stdin.buffer.read, machine, tell, Path({folder!r}))
"""


def child(folder: Path, first: str = "") -> subprocess.Popen[bytes]:
    code = _CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), first=first)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("sent", [1 << 20, 3 << 20])
def test_killed_while_it_writes_the_machine_starts_what_ran(tmp_path: Path, sent: int) -> None:
    raw = update()
    with child(tmp_path) as process:
        assert process.stdin and process.stdout
        process.stdin.write(raw[: sent + 4096])
        process.stdin.flush()
        while not process.stdout.readline().startswith(f"writing {sent}".encode()):
            assert process.poll() is None
        process.kill()
    assert SlotStore(tmp_path).read().state == State("a", Good(), Empty())


def test_a_full_disk_ends_it_in_one_line(tmp_path: Path) -> None:
    # Two MiB of each file, and no more, as on a disk that is full; the signal would be its end.
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))"
    )
    with child(tmp_path, limit) as process:
        _, said = process.communicate(update())
    assert b"EnvironmentFault: slot b cannot be written: File too large" in said
    assert SlotStore(tmp_path).read().state == State("a", Good(), Empty())


def test_a_disk_that_keeps_other_bytes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = appliance(tmp_path)

    def worn(disk: int, *_: object) -> None:
        os.pwrite(disk, b"?", 5000)

    monkeypatch.setattr("image.node.install.os.posix_fadvise", worn)
    with pytest.raises(EnvironmentFault, match="does not keep what is written"):
        put(machine, update())
    assert boots(machine) == "a"


def test_a_disk_without_the_other_slot_is_told(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    machine.devices.pop("b")
    with pytest.raises(EnvironmentFault, match="no partition slot-b"):
        put(machine, update())
