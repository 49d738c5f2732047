"""What Foundation42/distributed was told, as settings of ours, and what has no equivalent. A core.

It had a file, distributed.yaml, and variables DISTRIBUTED_SECTION_KEY; `agent config import` reads
either. Each thing that was set there ends in one of three ways: it is taken into agent.toml, it is
so in Covey anyway, or there is nothing like it, and then a line says why, or what to do instead.
Secrets are named and never shown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from agent.errors import ConfigError

PREFIX = "DISTRIBUTED_"
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning",
           "error": "error", "dpanic": "error", "panic": "error", "fatal": "error"}  # fmt: skip
_YES, _NO = ("true", "1", "t", "yes", "on"), ("false", "0", "f", "no", "off")
# A file of theirs with all there is has some fifty.
_MOST_VALUES = 10_000
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr")
Becomes = Literal["taken", "same", "none"]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one thing: `key` is theirs, `text` says it for people.

    `settings` are ours that it gives, by their keys; empty unless it is taken.
    """

    key: str
    becomes: Becomes
    text: str
    settings: dict[str, Any] = {}


_Reads = Callable[[str, Any], Line]


def from_variables(variables: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what variables set, as the file would have it; others than theirs are left out."""
    found: dict[str, dict[str, str]] = {}
    for name, value in variables.items():
        if name.startswith(PREFIX) and value:
            section, _, key = name.removeprefix(PREFIX).lower().partition("_")
            # One compose file of theirs has it without its section.
            if (section, key) == ("log", "level"):
                section, key = "node", "log_level"
            found.setdefault(section, {})[key] = value
    return found


def read(document: object) -> list[Line]:
    """Return what becomes of each thing in their file, in its order. Raises ConfigError."""
    if not isinstance(document, Mapping) or not document:
        raise ConfigError(
            "it has no section of distributed",
            hint="Its sections are node, p2p, wireguard, llm, scheduler, gateway, monitoring.",
        )
    if _larger(document, _MOST_VALUES):
        raise ConfigError(f"it has more than {_MOST_VALUES} values")
    return list(_lines(document))


def _larger(tree: object, most: int) -> bool:
    """Say whether a document has more values: a few lines of YAML's aliases make billions."""
    waiting, seen = [tree], 0
    while waiting:
        seen += 1
        if seen > most:
            return True
        match waiting.pop():
            case dict() as found:
                waiting += [*found, *found.values()][: most + 1]
            case list() as found:
                waiting += found[: most + 1]
    return False


def settings_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Return all settings that were taken."""
    return {key: value for line in lines for key, value in line.settings.items()}


def toml(settings: Mapping[str, Any], origin: str) -> str:
    """Return agent.toml with these settings; `origin` says where they are from."""
    lines = [f"# Made by `agent config import` from {origin}.",
             "# `agent config sample` has all settings with a sentence for each."]  # fmt: skip
    for section in dict.fromkeys(key.partition(".")[0] for key in settings):
        lines += ["", f"[{section}]"]
        for key, value in settings.items():
            if key.partition(".")[0] == section:
                # JSON's strings, numbers, booleans and flat lists are TOML's as well.
                lines.append(f"{key.partition('.')[2]} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"


def _lines(document: Mapping[Any, Any]) -> Iterator[Line]:
    for section, entries in document.items():
        if entries is None:
            continue
        if not isinstance(entries, Mapping):
            raise ConfigError(f"{_short(section)} is no section with keys and values")
        for key, value in entries.items():
            name = f"{section}.{key}"
            if value is None:
                continue
            reads = _KEYS.get(name)
            if reads is None:
                yield Line(_short(name), "none", "distributed has no such setting that is known")
            else:
                yield reads(name, value)


def _taken(key: str, settings: dict[str, Any], more: str = "") -> Line:
    told = ", ".join(f"{name} = {_short(value)}" for name, value in settings.items())
    return Line(key, "taken", f"{told}{more}", settings)


def _as(ours: str, read: Callable[[str, Any], Any]) -> _Reads:
    return lambda key, value: _taken(key, {ours: read(key, value)})


def _same(text: str) -> _Reads:
    return lambda key, _: Line(key, "same", text)


def _none(text: str, *, shown: bool = True) -> _Reads:
    """`text` has {} where the value stands, unless that is a secret."""
    return lambda key, value: Line(key, "none", text.replace("{}", _plain(value) if shown else ""))


def _switch(yes: str, no: str) -> _Reads:
    """Something that is always so here: `no` says what it means that it was off there."""
    return lambda key, value: (
        Line(key, "same", yes) if _truth(key, value) else Line(key, "none", no)
    )


def _truth(key: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in (*_YES, *_NO):
        raise _wrong(key, value, "true or false")
    return text in _YES


def _number(key: str, value: Any) -> int:
    text = str(value).strip()
    sign = text.removeprefix("-")
    if isinstance(value, bool) or not (sign.isascii() and sign.isdecimal() and len(sign) < 16):
        raise _wrong(key, value, "a whole number")
    return int(text)


def _word(key: str, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise _wrong(key, value, "a word")
    return str(value).strip()


def _level(key: str, value: Any) -> str:
    level = _LEVELS.get(_word(key, value).lower())
    if level is None:
        raise _wrong(key, value, "one of debug, info, warn and error")
    return level


def _network(key: str, value: Any) -> str:
    try:
        return str(ipaddress.IPv4Network(_word(key, value), strict=False))
    except ValueError:
        raise _wrong(key, value, "an IPv4 network such as 10.77.0.0/16") from None


def _list(key: str, value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise _wrong(key, value, "a list of addresses")
    return [part.strip() for part in parts if part.strip()]


def _place(key: str, address: str) -> tuple[str, int]:
    """Return host and TCP port of a multiaddress."""
    parts = address.strip("/").split("/")
    if len(parts) < 4 or parts[0] not in _HOSTS or parts[2] != "tcp" or not parts[1]:
        raise _wrong(key, address, "an address such as /ip4/192.0.2.1/tcp/4001")
    port = _number(key, parts[3])
    if not 1 <= port <= 65535:
        raise _wrong(key, address, "an address with a port")
    return parts[1], port


def _listen(key: str, value: Any) -> Line:
    places = [_place(key, address) for address in _list(key, value)]
    if not places:
        return Line(key, "same", "where it listens is a default of both")
    port = places[0][1]
    others = [host for host, _ in places if host not in ("0.0.0.0", "::")]  # noqa: S104 - compared
    more = ", for TCP and UDP alike"
    if others:
        more += (
            f"; Covey listens on all addresses, and network.addresses names those for others if "
            f"they are not its interfaces' own ({_short(', '.join(others))} here)"
        )
    if any(other != port for _, other in places):
        more += "; its other ports have no equivalent"
    return _taken(key, {"network.control_port": port, "network.discovery_port": port}, more)


def _bootstrap(key: str, value: Any) -> Line:
    places = [_place(key, address) for address in _list(key, value)]
    if not places:
        return Line(key, "same", "nobody is named")
    named = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]
    return _taken(key, {"network.bootstrap": named}, "; they have to run Covey, and to be let in: "
                  "`agent invite` on a member, `agent join TICKET` here")  # fmt: skip


def _device(key: str, value: Any) -> Line:
    if _truth(key, value):
        return Line(key, "same", "the kernel's WireGuard is taken where it works")
    return _taken(key, {"network.backend": "userspace"})


def _gpu(key: str, value: Any) -> Line:
    layers = _number(key, value)
    if layers == 0:
        return _taken(key, {"engine.gpu": "off"})
    if layers < 0:
        return Line(key, "same", "GPUs are used where they compute right")
    return Line(key, "none", "how many layers go on a GPU follows from its memory")


def _threads(key: str, value: Any) -> Line:
    threads = _number(key, value)
    if threads <= 0:
        return Line(key, "same", "as many as were measured to be best")
    return _taken(key, {"engine.threads": threads}, "; 0 has Covey measure what is best")


def _served(key: str, value: Any) -> Line:
    urls = [url.rstrip("/").removesuffix("/v1") for url in _list(key, value)]
    flags = " ".join(f"--replica llama{number}={url}" for number, url in enumerate(urls, 1))
    return Line(
        key, "none", "the agent runs llama.cpp itself; a server that is there may be asked as "
        f"well: `gateway serve {_short(flags, 200)}`",
    )  # fmt: skip


def _context(key: str, value: Any) -> Line:
    return Line(key, "none", f"it is a deployment's: `agent deploy MODEL --context "
                f"{_number(key, value)}`")  # fmt: skip


def _door(key: str, value: Any) -> Line:
    host, _, port = _word(key, value).rpartition(":")
    place = f"{host or '0.0.0.0'}:{port}"  # noqa: S104 - named, not bound
    open_to = "" if host else ", which asks for keys (`gateway keys create NAME`)"
    return Line(key, "none", f"`gateway serve --listen {_short(place)}`{open_to}")


def _wrong(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key} is {_short(value)}, not {wanted}")


def _short(value: Any, most: int = 80) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    text = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plain(value: Any) -> str:
    return _short(", ".join(map(str, value)) if isinstance(value, list) else value)


_METRICS = "the gateway has /metrics at its own address, the agent tells by its socket"
_OWN_KEY = "a node makes its own key, from which its WireGuard key and addresses follow"
_KEYS: dict[str, _Reads] = {
    "node.id": _as("node.name", _word),
    "node.data_dir": _none("Covey keeps its state elsewhere (node.state_dir); nothing that "
                           "distributed has in {} is of use to it"),
    "node.geo_location": _none("the gateway's geo_proximity goes by measured round trips; for "
                               "placement it may be a tag: `agent grant NODE --tag {}`"),
    "node.log_level": _as("node.log_level", _level),
    "p2p.listen_addrs": _listen,
    "p2p.bootstrap_peers": _bootstrap,
    "p2p.enable_mdns": _as("network.mdns", _truth),
    "p2p.enable_dht": _switch("there is always a DHT", "members always find each other by a DHT"),
    "p2p.enable_gossip": _switch("there always is gossip", "members always tell news by gossip"),
    "p2p.heartbeat_period": _none("each member is asked about once a second"),
    "p2p.private_key": _none(_OWN_KEY, shown=False),
    "wireguard.enabled": _switch("there is always WireGuard", "there is no mesh without WireGuard"),
    "wireguard.interface": _as("network.interface", _word),
    "wireguard.private_key": _none(_OWN_KEY, shown=False),
    "wireguard.listen_port": _as("network.listen_port", _number),
    "wireguard.subnet_cidr": _as("network.ipv4_network", _network),
    "wireguard.allowed_ips": _none("they follow from each member's key"),
    "wireguard.persistent_keepalive": _none("how often a path needs a packet is found out"),
    "wireguard.use_kernel_module": _device,
    "llm.backend": lambda key, value: (
        Line(key, "same", "it is llama.cpp")
        if _word(key, value).lower() in ("llamacpp", "llama.cpp", "llama-cpp")
        else Line(key, "none", "Covey computes by llama.cpp alone; other servers may stand behind "
                  "`gateway serve --replica NAME=URL`")
    ),
    "llm.model_id": _none("models are deployed while it runs: `agent pull`, then `agent deploy "
                          "{}`"),
    "llm.model_path": _none("models are deployed while it runs: `agent deploy {}`"),
    "llm.context_size": _context,
    "llm.batch_size": _none("it is 512 everywhere, since all stages have to agree"),
    "llm.threads": _threads,
    "llm.gpu_layers": _gpu,
    "llm.llamacpp_url": _served,
    "llm.llamacpp_urls": _served,
    "llm.max_concurrent": _none("a ring serves 16 at once; `gateway serve --per-replica {}` sends "
                                "it no more"),
    "llm.tokens_per_second": _none("speeds are measured"),
    "llm.capabilities": _none("what a model can do is read from its file"),
    "scheduler.strategy": _none("it is the gateway's: `gateway serve --strategy {}`"),
    "scheduler.load_balancing": _none("it is the gateway's: `gateway serve --strategy {}`"),
    "scheduler.max_retries": _none("the gateway tries what had no byte of an answer again by "
                                   "itself, within a budget"),
    "scheduler.request_timeout": _none("request_timeout_s in the gateway's file bounds a request; "
                                       "it was {}"),
    "scheduler.health_check_rate": _none("replicas are watched all the time"),
    "gateway.enabled": _none("the gateway is a program of its own: `gateway serve`"),
    "gateway.listen_addr": _door,
    "gateway.enable_tls": _none("TLS is on where `gateway serve --tls-cert … --tls-key …` say so"),
    "gateway.cert_file": _none("`gateway serve --tls-cert {}`"),
    "gateway.key_file": _none("`gateway serve --tls-key {}`"),
    "monitoring.metrics_enabled": _none(_METRICS),
    "monitoring.metrics_addr": _none(_METRICS),
    "monitoring.tracing_enabled": _none("`gateway serve --otlp-endpoint URL` has it traced"),
    "monitoring.tracing_addr": _none("`gateway serve --otlp-endpoint http://{}`"),
}  # fmt: skip
