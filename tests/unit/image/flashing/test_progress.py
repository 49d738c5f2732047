"""The line of progress: how much, how fast, how long still."""

from image.flashing.progress import line

MIB = 1 << 20


def test_a_rate_and_the_time_that_is_left() -> None:
    assert line("Writing", 300 * MIB, 1217 * MIB, 12.0) == (
        "Writing: 300 of 1217 MiB, 25.0 MiB/s, 37 s left"
    )
    assert line("Writing", 30 * MIB, 1217 * MIB, 10.0).endswith("3.0 MiB/s, 6 min 36 s left")


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert line("Reading back", 0, 10 * MIB + 1, 30.0) == "Reading back: 0 of 11 MiB"
    assert line("Writing", 5 * MIB, 10 * MIB, 0.1) == "Writing: 5 of 10 MiB"
