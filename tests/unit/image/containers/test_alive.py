"""The containers' probe: whether an agent or a gateway answers, and a line where it does not."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from image.containers import alive


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        request, _ = super().get_request()
        return request, ("agent", 0)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def handler(status: int, body: object) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def test_an_agent_that_answers_lives(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    with serving(_UnixServer(str(socket), handler(200, {"name": "den"}))):
        assert alive.fault(None, socket) == ""
    assert alive.fault(None, socket) == f"no agent answers on {socket}"


def test_an_agent_that_answers_with_an_error_does_not(tmp_path: Path) -> None:
    with serving(_UnixServer(str(tmp_path / "s"), handler(500, {"error": {"message": "no."}}))):
        assert "no agent answers" in alive.fault(None, tmp_path / "s")


def test_a_gateway_is_asked_by_its_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(200, {}))
    url = f"http://127.0.0.1:{server.server_port}/health"
    with serving(server):
        assert alive.main([url]) == 0
    assert alive.main([url]) == 1
    assert f"{url} does not answer" in capsys.readouterr().out
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(503, {}))
    with serving(server):
        assert "answers 503" in alive.fault(f"http://127.0.0.1:{server.server_port}/health")
