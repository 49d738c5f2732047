"""The page's files as they are served, and the headers that bound what a browser does with them.

Used by `serve.py`. They are read once: a new release comes with a new process.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

import msgspec

INDEX = "index.html"
_WEB = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in nobody's frame: what a member calls itself, or a model
# answers, can run no script even where the page had a mistake.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class File(msgspec.Struct, frozen=True):
    """One file: its bytes, media type and ETag."""

    body: bytes
    media: str
    etag: str


@cache
def files() -> dict[str, File]:
    """Return the page's files by name."""
    return {
        path.name: File(
            body := path.read_bytes(), _TYPES[path.suffix], f'"{sha256(body).hexdigest()[:24]}"'
        )
        for path in sorted(_WEB.iterdir())
        if path.suffix in _TYPES
    }
