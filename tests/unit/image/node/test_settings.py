"""covey.toml: what it says, every mistake at once with its line, and never an exception."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address, ip_interface

import pytest
from covey_toml import (
    LINES,
    PROXY_PASSWORD,
    SECRETS,
    SETTING_LINES,
    SSH_KEY,
    TICKET,
    WIFI_PASSWORD,
    changed,
    file,
)
from hypothesis import given
from hypothesis import strategies as st

from image.node.fields import FIELDS
from image.node.settings import (
    MAX_FILE_BYTES,
    Proxy,
    Reading,
    Settings,
    StaticAddress,
    Wifi,
    read,
    sample,
)

FULL = Settings(
    ticket=TICKET,
    name="shed-1",
    roles=("worker", "relay"),
    tags=("gpu", "site:home"),
    ssh_keys=(SSH_KEY,),
    wifi=Wifi("Our network", WIFI_PASSWORD, "DE"),
    address=StaticAddress(
        ip_interface("192.168.1.20/24"),
        ip_address("192.168.1.1"),
        (ip_address("9.9.9.9"),),
        "eth0",
    ),
    proxy=Proxy("http://proxy.lan:3128", "shed", PROXY_PASSWORD),
)


def told(raw: bytes) -> list[tuple[int, str, str]]:
    """Return line, key and reason of each mistake; there has to be one."""
    reading = read(raw)
    assert reading.settings is None
    return [(mistake.line, mistake.key, mistake.reason) for mistake in reading.mistakes]


def test_a_full_file() -> None:
    assert read(file(*LINES)) == Reading(FULL)


def test_the_full_file_is_toml() -> None:
    """A file that is read here is no language of our own."""
    document = tomllib.loads(file(*LINES).decode())
    assert document["tags"] == list(FULL.tags)
    assert document["wifi_password"] == WIFI_PASSWORD


def test_nothing_is_set() -> None:
    for raw in (b"", b"\n\n", b"# only a note", b'name = ""\ntags = []\nwifi_password = ""\n'):
        assert read(raw) == Reading(Settings())


def test_the_sample_sets_nothing_and_each_of_its_lines_can_be_set() -> None:
    lines = sample().splitlines()
    assert read(sample().encode()) == Reading(Settings())
    examples = [
        line.removeprefix("# ") for line in lines if " = " in line and "Several" not in line
    ]
    assert [line.partition(" = ")[0] for line in examples] == list(FIELDS)
    raw = (
        "\n".join(examples)
        .replace("covey1…", TICKET)
        .replace("ssh-ed25519 AAAA… me@laptop", SSH_KEY)
    )
    settings = read(raw.encode()).settings
    assert settings is not None
    assert settings.wifi == Wifi("Our network", "long and secret", "DE")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_editors_do_to_a_file_is_forgiven(end: str, encoding: str) -> None:
    raw = "".join(line + end for line in LINES).encode(encoding)
    assert read(raw) == Reading(FULL)


@pytest.mark.parametrize(
    "line",
    [
        "name = “shed-1”",
        "name = „shed-1“",
        "name = «shed-1»",
        "name = ‘shed-1’  # a note",
        'name = "shed-1”',
        'name = ”shed-1"',
        'name\u00a0=\u00a0"shed-1"\u200b',
        '\ufeffname = "shed-1"',
        '"name" = "shed-1"',
        'name = """shed-1"""',
        "name = '''shed-1'''",
        'name = "\\u0073hed-1"',
        'name="shed-1"#note',
    ],
)
def test_what_word_processors_do_to_quotes_is_forgiven(line: str) -> None:
    assert read(line.encode()) == Reading(Settings(name="shed-1"))


def test_quotes_within_quotes() -> None:
    assert read("wifi = “Anna’s “new” net”".encode()) == Reading(
        Settings(wifi=Wifi("Anna’s “new” net"))
    )
    assert read(b"wifi = 'the \"new\" net'") == Reading(Settings(wifi=Wifi('the "new" net')))
    assert read(b"wifi = \"Anna's\" # it's hers") == Reading(Settings(wifi=Wifi("Anna's")))
    assert read("tags = [‘a’, ‘b’]".encode()) == Reading(Settings(tags=("a", "b")))


def test_lists_may_take_several_lines() -> None:
    raw = b'tags = [ # these\n  "a"\n  , "b",,\n\n  "a"]\nname = "n"'
    assert read(raw) == Reading(Settings(tags=("a", "b"), name="n"))


def test_a_ticket_that_was_wrapped() -> None:
    raw = f'ticket = """\n{TICKET[:70]}\n{TICKET[70:]}"""\nname = "n"'.encode()
    assert read(raw) == Reading(Settings(ticket=TICKET, name="n"))


def test_all_mistakes_are_told_at_once() -> None:
    raw = file(
        "[node]",
        'Name = "shed"',
        "name = shed",
        "role: worker",
        'tags = ["ok", "NOT OK", 5]',
        'wifi_password = "short"',
        "wifi_country =",
        'proxy = "http://a:b@proxy.lan:3128"',
        'dns = "1.1.1.1" "8.8.8.8"',
        'name = "again"',
        "gateway = 'not closed",
        "just words",
    )
    assert told(raw) == [
        (1, "", "is a line in brackets, but this file has no sections"),
        (2, "Name", "is no setting"),
        (3, "name", "has no quotes around it"),
        (4, "", "has a colon where an = is needed"),
        (5, "tags", "“NOT OK” cannot be a tag"),
        (5, "tags", "has no quotes around it"),
        (6, "wifi_password", "cannot be a wifi password (5 characters)"),
        (6, "wifi_password", "means nothing without wifi"),
        (7, "wifi_country", "has no value"),
        (8, "proxy", "has a user or a password in it"),
        (9, "dns", "something follows the value"),
        (10, "name", "was already set in line 3"),
        (11, "gateway", "the text in quotes that begins here does not end in this line"),
        (12, "", "is no setting and no comment"),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "advice"),
    [
        ("name = shed", "has no quotes", 'Write name = "shed".'),
        ("name = 5", "has no quotes", 'Write name = "5".'),
        ("hostname = 'shed'", "is no setting", "Write name if you mean this"),
        ("ssh-key = 'x'", "is no setting", "Write ssh_key if you mean"),
        ("colour = 'red'", "is no setting", "There are ticket, name"),
        ('name = "Shed 1"', "cannot be a name", 'Write "shed-1", for example.'),
        ('name = ["a"]', "is a list", 'Write name = "shed-1".'),
        ("role = 'admin'", "is no role that a file can give", "worker, gateway, relay"),
        ("tags = ['a'", "the list that begins here does not end", "Write ]"),
        ("ticket = 'hello'", "this is not a ticket", "begins with covey1"),
        (f"ticket = '{TICKET[:-9]}'", "cut short or garbled", "Copy it again"),
        ("ticket = 'covey2abc'", "from a newer version", "Update this node"),
        ("ssh_key = 'AAAAC3NzaC1lZDI1NTE5'", "no public ssh key", ".pub"),
        ("ssh_key = 'ssh-ed25519 AAAAC3Nza'", "cut short", ".pub"),
        ("ssh_key = '-----BEGIN OPENSSH PRIVATE KEY-----'", "private key", "new pair"),
        (f"wifi = '{'x' * 33}'", "cannot be a wifi network's name", "32 bytes"),
        ("wifi = 'C:\\net\"", "does not end in this line", "one line"),
        ('wifi = "C:\\net\\x"', "holds a \\ that stands for nothing", "between two '"),
        ("address = '192.168.1.20'", "does not say how large", "/24"),
        ("address = '192.168.1.20/255.255.255.0'", "a mask", 'Write "192.168.1.20/24".'),
        ("address = '192.168.1.0/24'", "cannot be one machine's", "are taken"),
        ("address = '192.168.1.300/24'", "is no address", "192.168.1.20/24"),
        ("address = 'fe80::1%eth0/64'", "cannot be one machine's", "192.168.1.20/24"),
        ("gateway = '0.0.0.0'", "is no machine's address", "192.168.1.1"),
        ("interface = 'a/b'", "is no network interface", "eth0"),
        ("proxy = 'socks5://a:1'", "is no HTTP proxy", "http://HOST:PORT"),
        ("proxy = 'http://proxy.lan'", "does not end in a HOST:PORT", "http://HOST:PORT"),
        ("wifi_country = 'Germany'", "is no country", '"DE"'),
        ("proxy_user = 'a:b'", "cannot be a user", "colon"),
        ("proxy_password = '\t'", "a character that cannot be seen", "anew"),
    ],
)
def test_a_mistake_says_what_to_write(line: str, reason: str, advice: str) -> None:
    found = [m for m in read(file("", line)).mistakes if "nothing without" not in m.reason]
    (mistake,) = found
    assert mistake.line == 2
    assert reason in mistake.reason
    assert advice in mistake.advice
    assert str(mistake).startswith("line 2")


@pytest.mark.parametrize(
    ("address", "gateway", "good"),
    [
        ("192.168.1.20/24", "192.168.1.1", True),
        ("192.168.1.20/24", "192.168.2.1", False),
        ("192.168.1.20/24", "192.168.1.20", False),
        ("192.168.1.20/24", "fe80::1", False),
        ("10.0.0.0/31", "10.0.0.1", True),
        ("2001:db8::5/64", "2001:db8::1", True),
        ("2001:db8::5/64", "fe80::1", True),
        ("2001:db8::5/64", "2001:db9::1", False),
    ],
)
def test_a_gateway_lies_in_the_address_network(address: str, gateway: str, good: bool) -> None:
    raw = file(f'address = "{address}"', f'gateway = "{gateway}"')
    reading = read(raw)
    assert [m.line for m in reading.mistakes] == ([] if good else [2])
    if reading.settings:
        assert reading.settings.address == StaticAddress(
            ip_interface(address), ip_address(gateway), (ip_address(gateway),)
        )


def test_what_needs_a_setting_whose_line_is_broken_is_not_wrong() -> None:
    assert [line for line, _, _ in told(changed(8, "wifi = 'Our network"))] == [8]
    assert [line for line, _, _ in told(changed(8, "wifi = 5"))] == [8]
    assert [line for line, _, _ in told(changed(8, ""))] == [9, 10]


def test_bytes_that_are_no_text() -> None:
    assert read(b"# caf\xe9\nname = 'n'") == Reading(Settings(name="n"))
    assert told(b"\nwifi = 'caf\xe9'")[0] == (
        2, "wifi", "holds letters that this file's encoding does not have",
    )  # fmt: skip
    assert told(b"name = 'a'\n\0\0\0") == [(2, "", "is no text")]
    assert told("name = 'a'".encode("utf-16-le")) == [(1, "", "is no text")]
    assert told(b"#" * (MAX_FILE_BYTES + 1))[0][0] == 1


def test_an_open_network_and_a_kept_password_are_different() -> None:
    opened = read(b"wifi = 'Our network'\nwifi_password = ''").settings
    kept = read(b"wifi = 'Our network'").settings
    other = read(b"wifi = 'Another'").settings
    assert opened and kept and other
    assert opened.with_kept(FULL).wifi == Wifi("Our network", "")
    assert kept.with_kept(FULL).wifi == Wifi("Our network", WIFI_PASSWORD)
    assert other.with_kept(FULL).wifi == Wifi("Another", None)
    assert Settings().with_kept(FULL) == Settings()


def test_settings_do_not_show_secrets() -> None:
    assert not [secret for secret in SECRETS if secret in repr(FULL)]


BREAKS = st.sampled_from(
    [
        lambda line: line.partition("=")[0],
        lambda line: line.partition("=")[0] + "=",
        lambda line: line.replace("=", ":", 1).partition("#")[0].replace("=", ""),
        lambda line: line.partition("=")[0] + "= 17",
        lambda line: line.partition("=")[0] + "= {}",
        lambda line: line.partition("=")[0] + "= 'never closed",
        lambda line: line.partition("=")[0] + '= "never closed\\"',
        lambda line: line.partition("=")[0] + '= "a\x01b"',
        lambda line: line.partition("=")[0] + '= "x" "y',
        lambda line: line.partition("=")[0] + "= ['a', [",
        lambda line: "x" + line.partition("=")[0] + "y= 'z'",
        lambda line: f"[{line.partition('=')[0].strip()}]",
    ]
)


@given(st.dictionaries(st.sampled_from(SETTING_LINES), BREAKS, min_size=1))
def test_each_broken_line_is_told_and_no_other(broken: dict) -> None:
    """Any lines of a good file, broken in any way: exactly those lines are told."""
    lines = [
        broken[number](line) if number in broken else line
        for number, line in enumerate(LINES, start=1)
    ]
    reading = read(file(*lines, "name2 = 'so that a list ends here'"))
    found = {mistake.line for mistake in reading.mistakes} - {len(LINES) + 1}
    # What needs a setting whose line is broken is told as well; its own line is not wrong.
    follows = {m.line for m in reading.mistakes if "means nothing without" in m.reason}
    assert set(broken) <= found <= set(broken) | follows
    for mistake in reading.mistakes:
        assert not [secret for secret in SECRETS if secret in str(mistake)]


@given(st.data())
def test_any_mutation_gives_settings_or_mistakes(data: st.DataObject) -> None:
    raw = bytearray(file(*LINES, end=data.draw(st.sampled_from(["\n", "\r\n"]))))
    pieces = st.one_of(
        st.binary(max_size=4),
        st.sampled_from(['"', "'", '"""', "[", "]", "#", "=", ",", "\\", "\r", "“", "’", "\n"]).map(
            str.encode
        ),
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 12))] = data.draw(pieces)
    reading = read(bytes(raw))
    assert (reading.settings is None) == bool(reading.mistakes)
    count = len(bytes(raw).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    lines = [mistake.line for mistake in reading.mistakes]
    assert lines == sorted(lines)
    assert all(1 <= line <= count for line in lines)
    assert all(str(mistake).isprintable() for mistake in reading.mistakes)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_settings_or_mistakes(raw: bytes) -> None:
    reading = read(raw)
    assert (reading.settings is None) == bool(reading.mistakes)


# At most four bytes each, and all that can be seen.
LETTERS = st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \"'\\#")


@given(st.text(LETTERS, min_size=1, max_size=8))
def test_what_toml_can_say_is_read_as_toml_reads_it(name: str) -> None:
    """A wifi network's name in any of TOML's quotes means what Python's reader says it means."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    written = [f'"{escaped}"', f'"""{escaped}"""'] + [f"'{name}'"] * ("'" not in name)
    for text in written:
        assert tomllib.loads(f"wifi = {text}")["wifi"] == name
        assert read(f"wifi = {text} # '\"".encode()) == Reading(Settings(wifi=Wifi(name)))


def test_a_line_that_is_told_can_be_mended_alone() -> None:
    """The advice for one line makes the whole file good again."""
    assert told(changed(3, "name = shed-1")) == [(3, "name", "has no quotes around it")]
    (mistake,) = read(changed(3, "name = shed-1")).mistakes
    advised = mistake.advice.removeprefix("Write ").removesuffix(".")
    assert read(changed(3, advised)) == Reading(FULL)
