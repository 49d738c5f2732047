"""Nothing secret stays in covey.toml, and nothing else goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from covey_toml import LINES, PROXY_PASSWORD, SECRETS, TICKET, WIFI_PASSWORD, file
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from image.node.scrub import Scrubbed, scrub
from image.node.settings import read, sample


def test_lines_with_secrets_go_and_their_comments_stay() -> None:
    scrubbed = scrub(file(*LINES))
    assert scrubbed.lines == (2, 9, 17)
    kept = [line for number, line in enumerate(LINES, start=1) if number not in scrubbed.lines]
    kept.insert(1, "# from Anna")
    assert scrubbed.raw == file(*kept)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_rest_means_the_same_with_what_is_kept(encoding: str, end: str) -> None:
    raw = "".join(line + end for line in LINES).encode(encoding)
    before, after = read(raw).settings, read(scrub(raw).raw).settings
    assert before and after
    assert after.ticket == ""
    assert after.with_kept(before) == replace(before, ticket="")
    assert not [secret for secret in SECRETS if secret in scrub(raw).raw.decode(encoding)]


def test_secrets_in_comments_go() -> None:
    raw = file(
        f"# old: {TICKET.upper()}, from May",
        f'#ticket = "{TICKET}"',
        "## wifi_password: was a long one",
        f'wifi = "net"  # {WIFI_PASSWORD}, says Anna',
        f'wifi_password = "{WIFI_PASSWORD}"',
    )
    assert scrub(raw) == Scrubbed(
        file(
            "# old: covey1…, from May",
            "#ticket = …",
            "## wifi_password: …",
            'wifi = "net"  # …, says Anna',
        ),
        (1, 2, 3, 4, 5),
    )


def test_what_has_no_secret_stays_as_it_is() -> None:
    for raw in (b"", b"# note", sample().encode(), file("wifi = 'open'", "wifi_password = ''")):
        assert scrub(raw) == Scrubbed(raw, ())


def test_a_ticket_of_several_lines_goes_whole() -> None:
    raw = f'name = "n"\nticket = """\n{TICKET[:70]}\n{TICKET[70:]}""" # x\n# end'.encode()
    assert scrub(raw) == Scrubbed(b'name = "n"\n# x\n# end', (2, 3, 4))


def test_scrubbing_twice_changes_nothing_more() -> None:
    once = scrub(file(*LINES, f"# {PROXY_PASSWORD}")).raw
    assert scrub(once) == Scrubbed(once, ())


def test_a_file_with_mistakes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"covey.toml, line 1, name: .*no quotes"):
        scrub(b"name = shed")


@given(st.permutations(LINES), st.sampled_from(["\n", "\r\n", "\r"]))
def test_in_any_order(lines: list[str], end: str) -> None:
    scrubbed = scrub(file(*lines, end=end)).raw.decode()
    assert not [secret for secret in SECRETS if secret in scrubbed]
    gone = ("ticket =", "wifi_password =", "proxy_password =")
    assert [line for line in lines if not line.startswith(gone)] == [
        line for line in scrubbed.split(end)[:-1] if line != "# from Anna"
    ]
