"""The gateway's configuration: one type, and what its texts mean.

A core, used by `config_file.py`. Precedence, strongest first: command-line flags, environment
(`COVEY_GATEWAY_LISTEN`, …), file (TOML, `--config`), default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from gateway.errors import UsageFault

# 8088 is the port that Foundation42's gateway listened on.
DEFAULT_LISTEN = "127.0.0.1:8088"
# A replica's name becomes a response header and a word in logs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Strategy = Literal[
    "latency_aware", "round_robin", "least_loaded", "capability_based", "geo_proximity"
]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that an operator can set."""

    listen: Annotated[str, "HOST:PORT to listen on; an IPv6 host in brackets."] = DEFAULT_LISTEN
    socket: Annotated[str, "The local agent's unix socket; empty: where the agent puts it."] = ""
    replicas: Annotated[dict[str, str], "Outside OpenAI servers: name to URL."] = {}
    vision: Annotated[
        tuple[str, ...], "Names of outside servers whose models see, of which the gateway cannot "
        "know it (Ollama, vLLM); others get no pictures, sound or files."
    ] = ()  # fmt: skip
    strategy: Annotated[Strategy, "How a replica is chosen."] = "latency_aware"
    wait_s: Annotated[
        float, msgspec.Meta(ge=0), "Seconds that a request waits for the next head of a model when "
        "the only one is lost; 0: not at all."
    ] = 30.0  # fmt: skip
    per_replica: Annotated[
        int, msgspec.Meta(ge=1), "Requests that run at one replica at most; more of them wait "
        "here, and clients get fair shares."
    ] = 256  # fmt: skip
    workers: Annotated[
        int, msgspec.Meta(ge=1), "Processes that serve, on the same address; each has its share of "
        "per_replica, queue and max_requests."
    ] = 1  # fmt: skip
    queue: Annotated[
        int, msgspec.Meta(ge=0), "Requests of one model that wait here at most; others get 429."
    ] = 256
    queue_wait_s: Annotated[
        float, msgspec.Meta(ge=0), "Seconds that a request waits for its turn at most; then 503."
    ] = 30.0
    hedge_percent: Annotated[
        float, msgspec.Meta(ge=0, le=100), "Of a hundred requests, how many at most are sent to a "
        "second replica as well when the first has no first byte when it should; 0: none."
    ] = 5.0  # fmt: skip
    json_logs: Annotated[bool, "Log JSON objects, one a line."] = False
    access_log: Annotated[
        str, "A file that gets a JSON line for each request, - for stdout; empty: none."
    ] = ""
    access_log_prompts: Annotated[
        bool, "Whether the access log has requests' bodies, and so what people asked."
    ] = False
    otlp_endpoint: Annotated[
        str, "An OpenTelemetry collector's URL (OTLP over HTTP), such as http://127.0.0.1:4318, "
        "that gets a span for each request; empty: none."
    ] = ""  # fmt: skip
    drain_s: Annotated[
        float, msgspec.Meta(ge=0), "Seconds that running requests get at the end."
    ] = 30.0
    store: Annotated[
        str, "Where keys and usage are kept: a path, sqlite:///PATH, or postgresql://… when "
        "several gateways share them; empty: a file in the gateway's state folder."
    ] = ""  # fmt: skip
    require_keys: Annotated[
        bool | None, "Whether every request needs a key; not set: where it listens on more than "
        "the loopback."
    ] = None  # fmt: skip
    tls_cert: Annotated[str, "A PEM file with the certificate and its chain; empty: no TLS."] = ""
    tls_key: Annotated[str, "A PEM file with the certificate's private key."] = ""
    max_body_bytes: Annotated[
        int, msgspec.Meta(ge=1), "Bytes that a request's body may have."
    ] = 16 * 2**20  # fmt: skip
    max_bodies_bytes: Annotated[
        int, msgspec.Meta(ge=1), "Bytes that the bodies of all requests may have together; those "
        "of up to 64 KiB do not count."
    ] = 2**30  # fmt: skip
    max_header_bytes: Annotated[
        int, msgspec.Meta(ge=1024), "Bytes that a request's first line, and each header, may have."
    ] = 16 * 2**10  # fmt: skip
    head_timeout_s: Annotated[
        float, msgspec.Meta(gt=0), "Seconds within which a request's head must have arrived: after "
        "its connection was made, or after the answer before it."
    ] = 75.0  # fmt: skip
    body_timeout_s: Annotated[
        float, msgspec.Meta(gt=0), "Seconds within which a request's body must have arrived."
    ] = 60.0  # fmt: skip
    request_timeout_s: Annotated[
        float, msgspec.Meta(ge=0), "Seconds that a request may take to its answer's end; 0: any."
    ] = 0.0  # fmt: skip
    max_requests: Annotated[
        int, msgspec.Meta(ge=0), "Requests that may be served at once, waiting ones too; 0: any."
    ] = 4096  # fmt: skip


# What a running gateway takes from its configuration file when it is told to read it again.
LIVE = frozenset(
    {"replicas", "vision", "strategy", "wait_s", "hedge_percent", "require_keys", "tls_cert",
     "tls_key", "body_timeout_s", "request_timeout_s", "max_requests", "max_bodies_bytes"}
)  # fmt: skip


def reloaded(old: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """Return what is in force when `new` is read while `old` runs, and which settings changed.

    First those that are in force now, then those that need a restart; TLS itself is one of them.
    """
    changed = [
        name for name in Config.__struct_fields__ if getattr(old, name) != getattr(new, name)
    ]
    live = LIVE if bool(old.tls_cert) == bool(new.tls_cert) else LIVE - {"tls_cert", "tls_key"}
    taken = [name for name in changed if name in live]
    config = msgspec.structs.replace(old, **{name: getattr(new, name) for name in taken})
    return config, taken, [name for name in changed if name not in live]


def share(config: Config, worker: int) -> Config:
    """Return the configuration of worker `worker` (from 1), with its share of what is bounded."""
    workers = config.workers

    def part(limit: int) -> int:
        return limit // workers + (worker <= limit % workers)

    return msgspec.structs.replace(
        config,
        per_replica=part(config.per_replica),
        queue=part(config.queue),
        max_requests=part(config.max_requests),
        max_bodies_bytes=part(config.max_bodies_bytes),
    )


def load(text: str, file: str, flags: Mapping[str, Any]) -> Config:
    """Return the configuration in the TOML `text` of `file`, with the flags that are not None.

    Replicas of the flags, and those that see, are added to those of the file. Raises UsageFault
    naming file and key.
    """
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # also for numbers of 4,300 digits
        raise UsageFault(f"{file} is not valid TOML: {error}") from error
    except RecursionError:
        raise UsageFault(f"{file} is not valid TOML: nested too deep") from None
    try:
        base = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise UsageFault(f"{file}: {error}") from error
    given = {name: value for name, value in flags.items() if value is not None}
    given["replicas"] = base.replicas | given.get("replicas", {})
    given["vision"] = base.vision + given.get("vision", ())
    config = msgspec.structs.replace(base, **given)
    parse_listen(config.listen)
    replicas = {name: check_replica(name, url) for name, url in config.replicas.items()}
    for url in replicas.values():
        same = [name for name, other in replicas.items() if other == url]
        if len(same) > 1:
            raise UsageFault(f"the replicas {' and '.join(same)} have the same URL {url}")
    for name in config.vision:
        if name not in replicas:
            raise UsageFault(
                f"{name!r} is said to see, but no replica is named so",
                hint="Name those with --vision that are given with --replica, or in the file.",
            )
    if bool(config.tls_cert) != bool(config.tls_key):
        raise UsageFault("tls_cert and tls_key belong together", hint="Set both, or neither.")
    check_otlp(config.otlp_endpoint)
    _check_shares(config)
    return msgspec.structs.replace(config, replicas=replicas)


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT; raises UsageFault."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:]+)):(\d{1,5})", text)
    if not match or int(match[3]) > 65535:
        raise UsageFault(
            f"--listen {text!r} is no address to listen on",
            hint="Write HOST:PORT, an IPv6 address in brackets: 127.0.0.1:8088 or [::1]:8088.",
        )
    return match[1] or match[2], int(match[3])


def parse_replicas(texts: Iterable[str]) -> dict[str, str]:
    """Return name and base URL of each NAME=URL; raises UsageFault."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, url = text.partition("=")
        if not equals:
            raise UsageFault(
                f"--replica {text!r} is not NAME=URL",
                hint="For example --replica ollama=http://127.0.0.1:11434.",
            )
        if name in named:
            raise UsageFault(f"two replicas are named {name}", hint="Give each its own name.")
        named[name] = check_replica(name, url)
    return named


def check_replica(name: str, url: str) -> str:
    """Return the base URL of a replica: no slash at the end and no /v1; raises UsageFault."""
    if not _NAME.fullmatch(name):
        raise UsageFault(
            f"the replica name {name!r} cannot be used",
            hint="Use up to 63 letters, digits, dots, dashes and underscores.",
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageFault(f"the URL {url!r} of replica {name} is wrong: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageFault(
            f"the URL {url!r} of replica {name} is no http:// or https:// address",
            hint="For example http://127.0.0.1:11434.",
        )
    if parts.query or parts.fragment or "@" in parts.netloc or re.search(r"\s", url):
        raise UsageFault(
            f"the URL of replica {name} must hold scheme, host, port and path only",
            hint="For example http://127.0.0.1:11434.",
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _check_shares(config: Config) -> None:
    """Raise UsageFault where a worker would have no place for any request."""
    for name in ("per_replica", "max_requests", "max_bodies_bytes"):
        limit = getattr(config, name)
        if 0 < limit < config.workers:
            raise UsageFault(
                f"{config.workers} workers cannot share {name} = {limit}",
                hint="Each needs one at least: take fewer workers, or a higher limit.",
            )


def check_otlp(url: str) -> None:
    """Raise UsageFault unless `url` is a collector's, or empty."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if url and (not fits or parts.query or parts.fragment or re.search(r"\s", url)):
        raise UsageFault(
            f"otlp_endpoint {url!r} is no http:// or https:// address",
            hint="For example http://127.0.0.1:4318.",
        )
