"""GRUB's script decides as the core does, in every state that there is.

Bash runs it with functions for GRUB's own words; GRUB's language is a part of the shell's.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

from image.node.envblock import decode as values_of
from image.node.slotblocks import NAMES, encode, following, latest
from image.node.slots import SLOTS, Bad, Empty, Good, ResetWanted, State, Trial, apply, boot

SCRIPT = Path(__file__).parents[4] / "image" / "boot" / "slots.cfg"
CONFIGS = ("slots.cfg", "grub.cfg", "early.cfg")
STANDINGS = (
    Good(), Empty(), Bad("tries"), Bad("unreadable"), Bad("unhealthy"),
    Trial(3), Trial(2), Trial(1), Trial(0),
)  # fmt: skip
STATES = [
    State(first, a, b, reset)
    for first, reset in product(SLOTS, (False, True))
    for a, b in product(STANDINGS, STANDINGS)
    if Good() in (a, b)
]
# A case is: both blocks, the slots that can be read, whether a block can be written.
Case = tuple[bytes, bytes, str, bool]

# The words of GRUB that the script uses. A block is its values with commas, or "-" when damaged.
WORDS = r"""
set() { printf -v "${1%%=*}" %s "${1#*=}"; }
load_env() {
  local block="${BLOCKS[${2: -5:1}]}"; shift 2
  [ "$block" != "-" ] || return 1
  IFS=, read -r "$@" <<< "$block"
}
save_env() {
  local index="${2: -5:1}"
  [ "$writable" = y ] || return 1
  [ "${BLOCKS[$index]}" != "-" ] || return 1
  BLOCKS[$index]="$serial,$first,$slot_a,$slot_b,$reset,$check"
}
covey_load() { [[ "$readable" == *"$slot"* ]]; }
covey_start() { echo "$slot ${BLOCKS[0]} ${BLOCKS[1]}"; exit; }
store="(hd0,gpt2)/grub"
while read -r zero one readable writable; do
  BLOCKS=("$zero" "$one")
  ( . "$SCRIPT"; echo "none ${BLOCKS[0]} ${BLOCKS[1]}" )
done
"""


def words(block: bytes) -> str:
    return ",".join(values_of(block)[name] for name in NAMES) if block else "-"


def run(cases: list[Case], factory: str = "n") -> list[str]:
    """Return what the script does in each case: the slot it boots, and both blocks then.

    `factory` is y where a person chose a factory reset.
    """
    lines = [
        f"{words(zero)} {words(one)} {readable or '-'} {'y' if writable else 'n'}\n"
        for zero, one, readable, writable in cases
    ]
    done = subprocess.run(
        ["bash", "-c", WORDS], input="".join(lines), capture_output=True, text=True, check=True,
        env={"SCRIPT": str(SCRIPT), "factory": factory},
    )  # fmt: skip
    assert done.stderr == ""
    answers = done.stdout.splitlines()
    assert len(answers) == len(cases)
    return answers


def decided(case: Case) -> str:
    """Return what the core says to the same case."""
    zero, one, readable, writable = case
    blocks = [zero, one]
    stored = latest((zero, one))
    after, slot = boot(stored.state, tuple(s for s in SLOTS if s in readable))
    if slot is None:
        # Whatever can be read, and nothing noted.
        return f"{readable[:1] or 'none'} {words(zero)} {words(one)}"
    index, block = following(stored, after)
    # GRUB changes a block in its place, so it needs one that it knows.
    if after != stored.state and writable and blocks[index]:
        blocks[index] = block
    elif isinstance(stored.state.of(slot), Trial):
        slot = "b" if slot == "a" else "a"
        if slot not in readable:
            slot = next(s for s in SLOTS if s in readable)
    return f"{slot} {words(blocks[0])} {words(blocks[1])}"


def test_in_every_state_it_does_what_the_core_says() -> None:
    cases: list[Case] = []
    for number, state in enumerate(STATES):
        # A reset that is wanted is only carried along.
        for serial, readable in product(range(1 if state.reset else 3), ("ab", "a", "b", "")):
            old = encode(STATES[number - 1], (serial - 1) % 3)
            new = encode(state, serial)
            cases += [(old, new, readable, True), (new, old, readable, True)]
    assert run(cases) == [decided(case) for case in cases]


@pytest.mark.parametrize("writable", [True, False])
def test_with_one_whole_block_or_none_that_can_be_written_it_boots_what_is_good(
    writable: bool,
) -> None:
    cases: list[Case] = []
    for state in STATES:
        new, old = encode(state, 1), encode(State(), 0)
        cases += [(new, b"", "ab", writable), (b"", new, "ab", writable), (old, new, "ab", False)]
    answers = run(cases)
    assert answers == [decided(case) for case in cases]
    for (zero, one, _, _), answer in zip(cases, answers, strict=True):
        assert latest((zero, one)).state.of("a" if answer[0] == "a" else "b") == Good()


def test_a_factory_reset_is_stored_before_what_boots_anyway() -> None:
    cases: list[Case] = []
    wanted: list[str] = []
    for number, state in enumerate(STATES):
        if not state.reset:
            old = encode(STATES[number - 1], 0)
            cases.append((old, encode(state, 1), "ab", True))
            after, slot = boot(apply(state, ResetWanted()))
            wanted.append(f"{slot} {words(encode(after, 2))} {words(encode(state, 1))}")
    assert run(cases, factory="y") == wanted


def test_a_reset_that_is_wanted_already_needs_no_write() -> None:
    state, old = encode(State(reset=True), 1), encode(State(), 0)
    assert run([(old, state, "ab", True)], factory="y") == [f"a {words(old)} {words(state)}"]


def test_without_any_state_it_boots_what_it_can_read() -> None:
    answers = run([(b"", b"", "ab", True), (b"", b"", "b", True), (b"", b"", "", True)])
    assert answers == ["a - -", "b - -", "none - -"]


def test_it_has_no_words_that_grub_lacks() -> None:
    text = SCRIPT.read_text()
    code = [line.strip() for line in text.splitlines() if not line.strip().startswith("#")]
    for word in ("&&", "||", "[[", "$(", "`", "local ", "${"):
        assert not [line for line in code if word in line], word


@pytest.mark.skipif(
    shutil.which("grub-script-check") is None, reason="grub-script-check is not installed"
)
@pytest.mark.parametrize("name", CONFIGS)
def test_grub_can_parse_it(name: str) -> None:
    subprocess.run(["grub-script-check", SCRIPT.with_name(name)], check=True)
