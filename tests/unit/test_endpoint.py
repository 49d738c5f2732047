"""HOST:PORT as text: read and written alike everywhere, and nothing else is taken for one."""

import pytest

from agent import endpoint
from agent.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:4001", "192.0.2.1", 4001),
        ("[2001:db8::1]:1", "2001:db8::1", 1),
        ("[fe80::1%eth0]:4001", "fe80::1%eth0", 4001),
        ("box.example.org:65535", "box.example.org", 65535),
        ("under_score:80", "under_score", 80),
    ],
)
def test_endpoints_are_read_and_written(text: str, host: str, port: int) -> None:
    assert endpoint.split(text) == (host, port)
    assert endpoint.join(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":4001", "host:0", "host:65536", "host:04001", "host:4 1",
     "::1:4001", "[::1]", "[::g]:1", "[1.2.3.4]:1", "a..b:1", "-a:1", "a/b:1", "host:1\n",
     "a" * 254 + ":1", "host:４００１", "[]:1"],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address") as caught:
        endpoint.split(text)
    assert len(caught.value.message) < 110


def test_port_0_is_for_listening_only() -> None:
    assert endpoint.split("[::]:0", lowest_port=0) == ("::", 0)
    assert endpoint.split("0.0.0.0:4001", lowest_port=0) == ("0.0.0.0", 4001)
    with pytest.raises(UsageError, match="is not an address"):
        endpoint.split("[::]:0")
