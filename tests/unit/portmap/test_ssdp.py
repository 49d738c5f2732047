"""UPnP's discovery: only the gateway's own description counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.portmap import ssdp

GATEWAY = "192.168.1.1"
URL = "http://192.168.1.1:5000/rootDesc.xml"


def answer(location: str = URL, status: str = "HTTP/1.1 200 OK", version: int = 1) -> bytes:
    return (
        f"{status}\r\nCACHE-CONTROL: max-age=120\r\n"
        f"st: urn:schemas-upnp-org:device:InternetGatewayDevice:{version}\r\n"
        f"Location: {location}\r\nEXT:\r\n\r\n"
    ).encode()


def test_the_search_is_as_upnp_writes_it() -> None:
    first, second = ssdp.searches()
    assert first.startswith(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n")
    assert first.endswith(b"\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n")
    assert second.endswith(b"InternetGatewayDevice:2\r\n\r\n")
    assert b'MAN: "ssdp:discover"\r\nMX: 1\r\n' in first


@pytest.mark.parametrize("version", [1, 2])
def test_the_gateways_answer_is_read(version: int) -> None:
    assert ssdp.description_url(answer(version=version), GATEWAY) == URL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer(status="HTTP/1.1 404 Not Found"),
        answer(status="NOTIFY * HTTP/1.1"),
        answer().replace(b"InternetGatewayDevice", b"MediaServer"),
        answer().replace(b"Location", b"Elsewhere"),
        answer("http://192.168.1.2:5000/rootDesc.xml"),
        answer() + bytes(4096),
    ],
)
def test_other_answers_are_not(data: bytes) -> None:
    assert ssdp.description_url(data, GATEWAY) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.1.evil.example/x",
        "http://192.168.1.1@evil.example/x",
        "http://192.168.1.1:80@evil.example/x",
        "http://192.168.1.1\\@evil.example/x",
        "http://192.168.1.1?@evil.example/x",
        "http://192.168.1.1#/x",
        "http://192x168.1.1/x",
        "https://192.168.1.1/x",
        "file:///etc/passwd",
        "http://127.0.0.1/x",
        "http://192.168.1.1:0/x",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/x\n",
        "http://192.168.1.1",
        "http://192.168.1.1/" + "x" * 256,
    ],
)
def test_urls_that_may_lead_elsewhere(url: str) -> None:
    assert not ssdp.is_on(url, GATEWAY)


@given(st.binary(max_size=300), st.text(max_size=100))
def test_whatever_comes_is_read_or_left(data: bytes, location: str) -> None:
    assert ssdp.description_url(data, GATEWAY) is None
    url = ssdp.description_url(answer(location), GATEWAY)
    assert url is None or url.startswith(("http://192.168.1.1/", "http://192.168.1.1:"))
