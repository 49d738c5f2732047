"""What may be pulled: sources, names, URLs, hashes; each mistake is one clear line."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CoveyError, UsageError
from agent.models.wanted import check_redirect, parse, shown

NETWORKS = (ip_network("fd00:1234::/48"), ip_network("10.77.0.0/16"))
HUB = "https://hub.example"


@pytest.mark.parametrize(
    ("source", "kind", "location", "name"),
    [
        ("/m/a b.gguf", "file", "/m/a b.gguf", "a-b"),
        ("https://x.org/m/Q8_0.GGUF?a=1", "url", "https://x.org/m/Q8_0.GGUF?a=1", "Q8_0"),
        ("https://x.org/a%20b.gguf", "url", "https://x.org/a%20b.gguf", "a-b"),
        ("hf:o/r/d/f.gguf", "url", f"{HUB}/o/r/resolve/main/d/f.gguf", "f"),
        ("http://127.0.0.1:8/f", "url", "http://127.0.0.1:8/f", "f"),
        ("http://[::1]/f", "url", "http://[::1]/f", "f"),
        ("http://[fd00:1234::5]/f", "url", "http://[fd00:1234::5]/f", "f"),
        ("http://10.77.3.4/f", "url", "http://10.77.3.4/f", "f"),
        ("llama-3.2", "mesh", "llama-3.2", "llama-3.2"),
        ("0123456789abcdef", "mesh", "0123456789abcdef", "0123456789abcdef"),
    ],
)
def test_sources(source: str, kind: str, location: str, name: str) -> None:
    wanted = parse(source, "", "", HUB, NETWORKS)
    assert (wanted.kind, wanted.location, wanted.name) == (kind, location, name)
    assert parse(source, "other", "AB" * 32, HUB, NETWORKS).sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("source", "name", "sha256", "words"),
    [
        ("", "", "", "names no model"),
        ("a\nb", "", "", "names no model"),
        ("x" * 5000, "", "", "names no model"),
        ("org/repo/file", "", "", "is no file on this node"),
        ("hf:org/repo", "", "", "names no file of the hub"),
        ("hf:org/repo/../../x", "", "", "names no file of the hub"),
        ("http://x.org/f", "", "", "not encrypted"),
        ("http://127.0.0.1.x.org/f", "", "", "not encrypted"),
        ("http://10.78.0.1/f", "", "", "not encrypted"),
        ("ftp://x.org/f", "", "", "no URL that models come from"),
        ("https:///f", "", "", "no URL that models come from"),
        ("https://x:99999/f", "", "", "no URL"),
        ("https://[::1/f", "", "", "no URL"),
        ("https://x.org/", "", "", "cannot name a model"),
        ("https://x.org/f", "../f", "", "cannot name a model"),
        ("https://x.org/f", "x" * 101, "", "cannot name a model"),
        ("https://x.org/f", "", "abc", "is no SHA-256"),
        ("https://x.org/f", "", "g" * 64, "is no SHA-256"),
        ("a b", "", "", "cannot name a model"),
    ],
)
def test_mistakes(source: str, name: str, sha256: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(source, name, sha256, HUB, NETWORKS)
    assert "\n" not in caught.value.line()
    assert len(caught.value.line()) < 400


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=70))
def test_anything_typed_is_taken_or_refused(source: str, name: str, sha256: str) -> None:
    try:
        parse(source, name, sha256, HUB, NETWORKS)
    except CoveyError as error:
        assert error.line().isprintable()


def test_a_redirect_may_not_lead_out_of_what_is_sealed() -> None:
    to = check_redirect("https://a.org/f", "https://b.org/g", NETWORKS)
    assert to == "https://b.org/g"
    for target in ("http://127.0.0.1/f", "http://b.org/f", "file:///etc/passwd"):
        with pytest.raises(UsageError, match=r"not encrypted|no URL"):
            check_redirect("https://a.org/f", target, NETWORKS)
    with pytest.raises(UsageError):
        check_redirect("http://127.0.0.1/f", "http://b.org/f", NETWORKS)


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("https://a.org/f", "https://127.0.0.1:8443/f"),
        ("https://a.org/f", "https://localhost/f"),
        ("https://a.org/f", "https://[fd00:1234::5]/f"),
        ("http://[fd00:1234::5]:7070/f", "http://127.0.0.1:8088/f"),
        ("http://10.77.0.9/f", "http://[::1]/f"),
        ("http://10.77.0.9/f", "http://localhost:11434/api/tags"),
    ],
)
def test_a_redirect_may_not_lead_to_this_nodes_own_services(asked: str, target: str) -> None:
    with pytest.raises(UsageError, match="not for it to say") as caught:
        check_redirect(asked, target, NETWORKS)
    assert caught.value.line().isprintable()


def test_a_redirect_may_lead_as_far_as_it_was_asked_from() -> None:
    for asked, target in (
        ("http://127.0.0.1/f", "http://[::1]:9/g"),
        ("http://[fd00:1234::5]/f", "http://10.77.0.9/f"),
        ("http://127.0.0.1/f", "http://10.77.0.9/f"),
        ("http://10.77.0.9/f", "https://a.org/f"),
    ):
        assert check_redirect(asked, target, NETWORKS) == target


def test_what_is_shown_has_no_password_and_no_signature() -> None:
    assert shown("https://me:secret@x.org:8/f?sig=secret#a") == "https://x.org:8/f"
    assert shown("http://[fd00::1]:80/f") == "http://[fd00::1]:80/f"
