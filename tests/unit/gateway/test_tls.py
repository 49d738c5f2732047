"""Certificates: the newest whole pair serves new connections, open ones keep theirs."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.errors import EnvironmentFault
from gateway.tls import Certificate

Pair = tuple[bytes, bytes]


def make_pair(name: str, password: bytes | None = None) -> Pair:
    """Return a certificate that signs itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    closed: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        closed = serialization.BestAvailableEncryption(password)
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed
    )


class Files:
    """The two files, written so that each write is seen, however fast it follows the last."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self._turn = 0

    def write(self, cert: bytes | None = None, key: bytes | None = None) -> None:
        for path, content in ((self.cert, cert), (self.key, key)):
            if content is not None:
                self._turn += 1
                path.write_bytes(content)
                os.utime(path, (self._turn, self._turn))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair[0]).serial_number


def shown(certificate: Certificate, *, most: ssl.TLSVersion | None = None) -> int:
    """Return the serial number of what a new connection is shown, without a network."""
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    if most is not None:
        client.maximum_version = client.minimum_version = most
        client.set_ciphers("ALL:@SECLEVEL=0")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    der = ours.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def test_a_new_pair_is_used_for_new_connections(files: Files) -> None:
    old, new = make_pair("old"), make_pair("new")
    files.write(*old)
    certificate = Certificate(str(files.cert), str(files.key))
    assert shown(certificate) == serial(old)
    files.write(*new)
    assert shown(certificate) == serial(old)  # nobody has looked yet
    certificate.look()
    assert shown(certificate) == serial(new)


def test_a_broken_pair_leaves_the_old_one_and_is_said_once(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = make_pair("old"), make_pair("new")
    files.write(*old)
    certificate = Certificate(str(files.cert), str(files.key))
    files.write(cert=new[0])  # the key is yet to be written
    certificate.look()
    certificate.look()
    assert shown(certificate) == serial(old)
    assert sum("old certificate stays in use" in r.getMessage() for r in caplog.records) == 1
    files.cert.unlink()
    certificate.look()
    files.write(b"no PEM", b"at all")
    certificate.look()
    assert shown(certificate) == serial(old)
    files.write(*new)
    certificate.look()
    assert shown(certificate) == serial(new)


def test_the_pair_may_move(files: Files, tmp_path: Path) -> None:
    old, new = make_pair("old"), make_pair("new")
    files.write(*old)
    certificate = Certificate(str(files.cert), str(files.key))
    (tmp_path / "b").mkdir()
    other = Files(tmp_path / "b")
    other.write(*new)
    os.utime(other.cert, (99, 99))
    certificate.use(str(other.cert), str(other.key))
    assert shown(certificate) == serial(new)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_that_are_spoken(files: Files, version: ssl.TLSVersion) -> None:
    pair, new = make_pair("x"), make_pair("y")
    files.write(*pair)
    certificate = Certificate(str(files.cert), str(files.key))
    assert shown(certificate, most=version) == serial(pair)
    files.write(*new)
    certificate.look()
    assert shown(certificate, most=version) == serial(new)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_is_older_is_refused(files: Files) -> None:
    files.write(*make_pair("x"))
    certificate = Certificate(str(files.cert), str(files.key))
    with pytest.raises(ssl.SSLError):
        shown(certificate, most=ssl.TLSVersion.TLSv1_1)


def test_a_pair_that_cannot_be_used_at_the_start(files: Files) -> None:
    where = str(files.cert), str(files.key)
    with pytest.raises(EnvironmentFault, match=f"{files.cert} .* cannot be used: No such file"):
        Certificate(*where)
    for pair in ((make_pair("a")[0], make_pair("b")[1]), make_pair("a", b"secret")):
        files.write(*pair)
        with pytest.raises(EnvironmentFault, match="cannot be used: ") as caught:
            Certificate(*where)
        assert "belong to each other; the key must not be encrypted" in caught.value.hint


async def test_an_open_connection_goes_on_over_a_change(files: Files) -> None:
    async def fine(_: web.Request) -> web.Response:
        return web.Response(text="fine")

    old, new = make_pair("old"), make_pair("new")
    files.write(*old)
    certificate = Certificate(str(files.cert), str(files.key))
    app = web.Application()
    app.router.add_get("/", fine)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.context).start()
    port = runner.addresses[0][1]
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return reader, writer, x509.load_der_x509_certificate(der).serial_number

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        async with asyncio.timeout(5):
            return await reader.readuntil(b"fine")

    reader, writer, number = await connect()
    assert number == serial(old)
    assert await ask(reader, writer)
    files.write(*new)
    certificate.look()
    other_reader, other_writer, number = await connect()
    assert number == serial(new)
    assert await ask(other_reader, other_writer)
    assert await ask(reader, writer)
    for one in (writer, other_writer):
        one.close()
        await one.wait_closed()
    await runner.cleanup()
