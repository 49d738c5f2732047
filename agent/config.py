"""The agent's configuration: one type; every field has a default, a unit and a sentence.

Precedence, strongest first: command-line flags (`--set network.listen_port=51821`), environment
(`COVEY_NETWORK_LISTEN_PORT=51821`), file (`agent.toml`), default. `sample()` writes the commented
file that `agent config sample` prints, from these types alone.

Reads files and the environment when asked to; everything after `load` only sees a `Config`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec

from agent import endpoint, places
from agent.errors import ConfigError, UsageError

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Few = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Outlive = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
# As host of `http.listen`: the node's address on the overlay, which nobody knows by heart.
OVERLAY_HOST = "overlay"
# Variables that are no settings of the agent: where its file and the build cache lie, the mark of a
# sandbox, the gateway's own settings, which may stand in the same environment, and a bench's keys.
_OUTSIDE = (
    "COVEY_CONFIG", "COVEY_CACHE", "COVEY_SANDBOX", "COVEY_ENGINE_LOG", "COVEY_GATEWAY_",
    "COVEY_BENCH_",
)  # fmt: skip


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who this node is and where it keeps what it must not lose."""

    name: Annotated[str, "The node's name; empty: the host name."] = ""
    state_dir: Annotated[
        str, "Keys, certificate, members and stages; empty: /var/lib/covey as root, else "
        "~/.local/state/covey."
    ] = ""  # fmt: skip
    socket: Annotated[
        str, "The local API's unix socket; empty: /run/covey/agent.sock as root, else under "
        "$XDG_RUNTIME_DIR or the state directory."
    ] = ""  # fmt: skip
    gateway_socket: Annotated[
        str, "A second unix socket, for a gateway that runs as another user: it answers what is "
        "only read, to whoever reaches its folder; empty: none."
    ] = ""  # fmt: skip
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], "The least level that is logged."
    ] = "info"


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ports and addresses on the underlay, and the overlay's interface."""

    interface: Annotated[str, "The WireGuard interface's name (at most 15 characters)."] = "covey0"
    backend: Annotated[
        Literal["auto", "kernel", "userspace"],
        "WireGuard in the kernel, by wireguard-go, or whichever works.",
    ] = "auto"
    mtu: Annotated[
        int, "The largest packet on the overlay in bytes, for members whose path carries it, "
        "which is measured; all others get 1280. At least 1280."
    ] = 1440  # fmt: skip
    listen_port: Annotated[Port, "WireGuard's UDP port."] = 51820
    outlive_s: Annotated[
        Outlive, "Seconds that the overlay stays when the agent was killed, for what flows through "
        "it and for the next agent to go on with; then it is taken away. A day at most."
    ] = 600.0  # fmt: skip
    control_port: Annotated[Port, "The control plane's TCP port (libp2p)."] = 4001
    discovery_port: Annotated[Port, "Discovery's UDP port (Kademlia)."] = 4001
    overlay_port: Annotated[
        Port, "The TCP port, on the overlay address only, where members fetch stages and models."
    ] = 7070
    beat_port: Annotated[
        Port, "The UDP port, on the overlay address only, where deployments' owners are settled; "
        "the same on every node."
    ] = 7071  # fmt: skip
    engine_ports: Annotated[
        str, "The TCP ports, on the overlay address only, for stages and heads: FIRST-LAST."
    ] = "7100-7199"
    addresses: Annotated[
        tuple[str, ...],
        "This node's underlay addresses for others, if not those of its interfaces.",
    ] = ()
    bootstrap: Annotated[
        tuple[str, ...],
        "HOST:PORT of members' discovery, asked at each start beside those remembered; names are "
        "resolved anew at each try.",
    ] = ()
    port_mapping: Annotated[
        bool, "Whether to ask the router to forward WireGuard's port (PCP, NAT-PMP, UPnP)."
    ] = True
    keep_paths: Annotated[
        Few, "Up to so many other members paths are kept to all of them; in a larger mesh to those "
        "that this node talks to, and the others are connected when they are needed."
    ] = 16  # fmt: skip
    relay: Annotated[
        bool, "Whether this node, if others reach it from outside, passes on the sealed packets of "
        "members that cannot reach each other."
    ] = True  # fmt: skip
    relay_ports: Annotated[
        str, "The UDP ports for what is relayed, two for each pair of members: FIRST-LAST."
    ] = "51840-52039"
    tunnel_port: Annotated[
        Port, "The TCP port on which a node with the role relay takes in members whose UDP is "
        "blocked (WebSocket over TLS)."
    ] = 443  # fmt: skip
    mdns: Annotated[
        bool, "Whether members on the same LAN find each other by multicast DNS (sealed)."
    ] = True
    acl: Annotated[
        str, "The file that says which tags may reach which ports; empty: acl.toml where the "
        "configuration file lies by default."
    ] = ""  # fmt: skip
    ipv4_network: Annotated[
        str, "The overlay's IPv4 network; read when a mesh is created, then a fact of the mesh."
    ] = "10.77.0.0/16"


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How stages run on this node."""

    gpu: Annotated[
        Literal["auto", "off"], "auto: stages run on this node's GPUs where llama-cpp-python was "
        "built for them and the self-test finds that they compute right; off: on the CPU."
    ] = "auto"  # fmt: skip
    threads: Annotated[
        int, "Threads for llama.cpp; 0: the fewest that were measured to be about as fast as any."
    ] = 0
    confine: Annotated[
        bool, "Engines, which read models that anybody made, open no file but those and what they "
        "run on, start no program and do not reach the agent; false: only for a GPU's driver that "
        "does not start so."
    ] = True  # fmt: skip
    measure: Annotated[
        Literal["idle", "off"], "idle: while nothing else is done, measure how fast this node's "
        "devices and links are, which placement goes by; off: never."
    ] = "idle"  # fmt: skip
    frames: Annotated[
        Literal["auto", "f32", "f16", "q8"], "Number format of activations between stages; auto: "
        "for each link f32 (exact) if it is fast enough, else f16 or q8."
    ] = "auto"  # fmt: skip
    flash_attention: Annotated[
        bool, "Many answers and prompts are faster, in less memory; off: an answer's last bits do "
        "not depend on the number of threads, nor on what else is in its batch."
    ] = True  # fmt: skip
    frame_timeout_s: Annotated[
        float, "Seconds of silence after which a stage counts as lost on the worst of links; also "
        "how long one that lives may take no byte of a frame."
    ] = 30.0  # fmt: skip
    frame_timeout_least_s: Annotated[
        float, "Seconds of silence after which a stage counts as lost on a link that was never "
        "late; links that were are given more, up to frame_timeout_s."
    ] = 1.7  # fmt: skip
    load_timeout_s: Annotated[float, "Seconds that a stage may take to fetch and load."] = 600.0


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When rings that run, and whose head is this node, are placed anew."""

    move: Annotated[
        Literal["auto", "never"], "auto: a ring moves when others would be at least a fifth faster "
        "and that pays for moving; never: only when a node is lost, comes back or drains."
    ] = "auto"  # fmt: skip
    horizon_tokens: Annotated[
        Annotated[int, msgspec.Meta(ge=1)],
        "Tokens within which a gain has to pay for the weights that are fetched and the pause: "
        "about what a ring makes in a day.",
    ] = 50_000


class Models(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where models are kept, and where they come from."""

    dir: Annotated[
        str, "The folder of the models that `agent pull` fetches; empty: models in the state "
        "directory."
    ] = ""  # fmt: skip
    quota_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0)],
        "Bytes that they may take; before more, those that were unused for longest are removed; "
        "0: no bound but the disk.",
    ] = 0
    hub: Annotated[str, "Where hf:ORG/REPO/FILE is fetched; a mirror of it may be named."] = (
        "https://huggingface.co"
    )


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this node shows over HTTP, to be read only: its metrics and its health."""

    listen: Annotated[
        str, "HOST:PORT of the pages; empty: none. `overlay` as HOST is this node's overlay "
        "address. Whoever reaches it reads members' names and how they do."
    ] = "127.0.0.1:7074"  # fmt: skip
    names: Annotated[
        tuple[str, ...],
        "Names under which clients ask, beside IP addresses and localhost; others are refused, "
        "since a web site could have its own name lead here.",
    ] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that an operator can set."""

    node: Node = Node()
    network: Network = Network()
    engine: Engine = Engine()
    placement: Placement = Placement()
    models: Models = Models()
    http: Http = Http()

    @property
    def state_dir(self) -> Path:
        """The state directory, its default filled in."""
        if self.node.state_dir:
            return Path(self.node.state_dir).expanduser()
        return Path(places.state_dir(os.environ, root=_is_root(), home=str(Path.home())))

    @property
    def socket(self) -> Path:
        """The local API's socket, its default filled in."""
        node = self.node
        found = places.socket(
            node.socket, node.state_dir, os.environ, root=_is_root(), home=str(Path.home())
        )
        return Path(found).expanduser()

    @property
    def gateway_socket(self) -> Path | None:
        """The gateway's socket, None: none."""
        return Path(self.node.gateway_socket).expanduser() if self.node.gateway_socket else None

    @property
    def models_dir(self) -> Path:
        """The models' folder, its default filled in."""
        if self.models.dir:
            return Path(self.models.dir).expanduser()
        return self.state_dir / "models"

    @property
    def engine_cache(self) -> Path:
        """Where is kept what llama.cpp was seen to do on this machine."""
        return self.state_dir / "engine"

    @property
    def engine_ports(self) -> range:
        """The ports for stages and heads; raises ConfigError when they are no range."""
        return _ports("network.engine_ports", self.network.engine_ports, "7100-7199")

    @property
    def http_listen(self) -> tuple[str, int] | None:
        """Where the pages are, None: nowhere; raises ConfigError when it is no HOST:PORT."""
        if not self.http.listen:
            return None
        try:
            return endpoint.split(self.http.listen)
        except UsageError as error:
            raise ConfigError(
                f"http.listen is {self.http.listen[:80]!r}",
                hint='Write HOST:PORT, as 127.0.0.1:7074 or [::1]:7074, or "" for no pages.',
            ) from error

    @property
    def relay_ports(self) -> range:
        """The ports for what is relayed; raises ConfigError when they are no range."""
        return _ports("network.relay_ports", self.network.relay_ports, "51840-52039")


def _ports(key: str, value: str, example: str) -> range:
    first, dash, last = value.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ConfigError(f"{key} is {value!r}", hint=f"Write two ports with a dash: {example}.")
    ports = range(int(first), int(last) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ConfigError(
            f"{key} {value!r} holds no port",
            hint=f"Write two ports, the lower one first: {example}.",
        )
    return ports


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": Node, "network": Network, "engine": Engine, "placement": Placement,
    "models": Models, "http": Http,
}  # fmt: skip


def default_file() -> Path:
    """Return where the configuration file lies if neither --config nor COVEY_CONFIG names one."""
    if _is_root():
        return Path("/etc/covey/agent.toml")
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "covey" / "agent.toml"


def load(
    file: Path | None, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> tuple[Config, dict[str, str]]:
    """Return the configuration and, for each key that was set, where from.

    `file` must exist when it is given; None reads COVEY_CONFIG or the default file if there is
    one. `settings` are flags as KEY=VALUE. Raises ConfigError naming the key and its source.
    """
    named = file or (Path(environment["COVEY_CONFIG"]) if environment.get("COVEY_CONFIG") else None)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = named or default_file()
    if named or path.exists():
        for key, value in _read_file(path):
            values[key], sources[key] = value, str(path)
    for key, value, name in _from_environment(environment):
        values[key], sources[key] = value, name
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in _keys():
            raise ConfigError(
                f"--set {setting!r} names no setting",
                hint="Write KEY=VALUE; `agent config show` lists the keys.",
            )
        values[key], sources[key] = text, f"--set {key}"
    return build(values, sources), sources


def sample() -> str:
    """Return the commented agent.toml, every setting at its default."""
    lines = [
        "# Covey agent. Each line shows a default; remove the # to change it.",
        "# Precedence: --set KEY=VALUE, then COVEY_SECTION_KEY, then this file, then the default.",
    ]
    for section, kind in _SECTIONS.items():
        lines += ["", f"# {(kind.__doc__ or '').splitlines()[0]}", f"[{section}]"]
        for field in msgspec.structs.fields(kind):
            # JSON's strings, numbers, booleans and flat lists are TOML's as well.
            text = msgspec.json.encode(_plain(field.default)).decode()
            lines += [
                f"# {_doc(kind, field.name)}{_choices(kind, field.name)}",
                f"# {field.name} = {text}",
            ]
    return "\n".join(lines) + "\n"


def described() -> dict[str, dict[str, Any]]:
    """Return by each setting's key its default, what it means, and what it may be (else [])."""
    return {
        f"{section}.{field.name}": {
            "default": _plain(field.default),
            "text": _doc(kind, field.name),
            "choices": list(_literals(kind, field.name)),
        }
        for section, kind in _SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    }


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting as {"section.key": value}."""
    return {
        f"{section}.{field.name}": _plain(getattr(getattr(config, section), field.name))
        for section, kind in _SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    }


def _is_root() -> bool:
    return os.geteuid() == 0


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _hint(kind: type[msgspec.Struct], name: str) -> Any:
    return get_type_hints(kind, include_extras=True)[name]


def _doc(kind: type[msgspec.Struct], name: str) -> str:
    return next(str(part) for part in get_args(_hint(kind, name)) if isinstance(part, str))


def _choices(kind: type[msgspec.Struct], name: str) -> str:
    values = _literals(kind, name)
    return f" One of: {', '.join(values)}." if values else ""


def _literals(kind: type[msgspec.Struct], name: str) -> tuple[Any, ...]:
    inner = get_args(_hint(kind, name))[0]
    return get_args(inner) if getattr(inner, "__origin__", None) is Literal else ()


def _keys() -> dict[str, Any]:
    return flatten(Config())


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also for text that is not UTF-8, and numbers of 4,300 digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: nested too deep") from None
    for section, entries in document.items():
        if section not in _SECTIONS or not isinstance(entries, dict):
            raise ConfigError(
                f"{path}: [{section}] is no section", hint=f"There are {', '.join(_SECTIONS)}."
            )
        for name, value in entries.items():
            if f"{section}.{name}" not in _keys():
                raise ConfigError(
                    f"{path}: {section}.{name} is no setting",
                    hint="`agent config sample` shows all of them.",
                )
            yield f"{section}.{name}", value


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    names = {f"COVEY_{key.replace('.', '_').upper()}": key for key in _keys()}
    for name, value in environment.items():
        if not name.startswith("COVEY_") or name.startswith(_OUTSIDE):
            continue
        if name not in names:
            raise ConfigError(
                f"the environment variable {name} is no setting",
                hint="`agent config show` lists the keys; COVEY_SECTION_KEY sets one.",
            )
        yield names[name], value, name


def build(values: Mapping[str, Any], sources: Mapping[str, str]) -> Config:
    """Return a Config of values by their keys, which `sources` says the origin of.

    Raises ConfigError naming the key and its source.
    """
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        kind = get_type_hints(_SECTIONS[section], include_extras=True)[name]
        try:
            if isinstance(value, str) and isinstance(_keys()[key], list):
                value = [part.strip() for part in value.split(",") if part.strip()]
            sections[section][name] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error)
            raise ConfigError(f"{key} = {value!r} ({sources[key]}): {reason}") from None
    return Config(
        node=Node(**sections["node"]),
        network=Network(**sections["network"]),
        engine=Engine(**sections["engine"]),
        placement=Placement(**sections["placement"]),
        models=Models(**sections["models"]),
        http=Http(**sections["http"]),
    )
