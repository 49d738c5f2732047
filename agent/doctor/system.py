"""Checks of this machine: what WireGuard needs of it, ports, disk, memory, clock. A core."""

from __future__ import annotations

from agent.doctor.facts import GIB, NET_ADMIN, NET_RAW, Facts
from agent.health import HealthItem

# Records, journals and logs are written all the time; the model store keeps as much free.
DISK_LEAST = 64 << 20
DISK_LOW = 1 * GIB
MEMORY_LOW = 256 << 20
_GRANT = (
    "Run the agent as root, or give its service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW, or "
    "its container `--cap-add NET_ADMIN --cap-add NET_RAW`."
)


def wireguard(facts: Facts) -> HealthItem:
    """WireGuard: in the kernel or as a program, and as the settings want it."""
    machine, backend = facts.machine, facts.wanted.backend
    runs = facts.agent.network.overlay if facts.agent else ""
    kernel = runs == "kernel" or (machine.kernel_wireguard and not runs)
    program = runs == "userspace" or machine.wireguard_go
    if runs == "userspace" or (program and backend != "kernel" and not kernel):
        return HealthItem(
            "wireguard-userspace", "note", "WireGuard runs as a program",
            "wireguard-go carries the overlay: it needs more of the CPU than the kernel's own.",
            "Where the kernel has it (`modprobe wireguard`), `agent restart` uses that.",
        )  # fmt: skip
    if kernel and backend != "userspace":
        return HealthItem("wireguard-missing", "ok", "WireGuard", "The kernel has it.")
    if program and backend == "userspace":
        return HealthItem("wireguard-missing", "ok", "WireGuard", "wireguard-go is installed.")
    lacks = {
        "kernel": "network.backend is kernel, and this kernel has no WireGuard.",
        "userspace": "network.backend is userspace, and wireguard-go is not installed.",
    }.get(backend, "This kernel has no WireGuard, and wireguard-go is not installed.")
    return HealthItem(
        "wireguard-missing", "error", "WireGuard is missing", lacks,
        "Load it with `modprobe wireguard`, or install wireguard-go; network.backend auto takes "
        "whichever is there.",
    )  # fmt: skip


def tun(facts: Facts) -> HealthItem:
    """/dev/net/tun: wireguard-go needs it, the kernel's WireGuard does not."""
    machine, backend = facts.machine, facts.wanted.backend
    if not machine.tun_fault:
        return HealthItem("tun-missing", "ok", "/dev/net/tun", "It can be opened.")
    running = bool(facts.agent and facts.agent.network.overlay)
    if running or backend == "kernel" or (backend == "auto" and machine.kernel_wireguard):
        return HealthItem("tun-missing", "ok", "/dev/net/tun", "WireGuard does without it here.")
    return HealthItem(
        "tun-missing", "error", "/dev/net/tun cannot be opened",
        f"wireguard-go needs it: {machine.tun_fault}.",
        "Load it with `modprobe tun`; give a container the device (`--device /dev/net/tun`); a "
        "user who is not root needs the right to open it.",
    )  # fmt: skip


def rights(facts: Facts) -> HealthItem:
    """The rights to make the overlay's interface, and to look for paths through NATs."""
    has = facts.machine.capabilities
    whose = "the agent" if facts.agent else "who asks this"
    if NET_ADMIN not in has:
        return HealthItem(
            "rights-missing", "error", "The right to set up networks is missing",
            f"Without {NET_ADMIN} {whose} can make no WireGuard interface.", _GRANT,
        )  # fmt: skip
    if NET_RAW not in has:
        return HealthItem(
            "raw-sockets-missing", "warning", "The right to raw sockets is missing",
            f"Without {NET_RAW} {whose} finds no way through NATs: members behind routers are not "
            "reached.", _GRANT,
        )  # fmt: skip
    return HealthItem("rights-missing", "ok", "Rights", f"{NET_ADMIN} and {NET_RAW} are there.")


def ipv6(facts: Facts) -> HealthItem:
    """IPv6: each member's first address on the overlay is one, whatever the underlay is."""
    if facts.machine.ipv6:
        return HealthItem("ipv6-missing", "ok", "IPv6", "The kernel has it, for the overlay.")
    return HealthItem(
        "ipv6-missing", "error", "IPv6 is switched off in the kernel",
        "Members' addresses on the overlay are IPv6, also where the internet here is not.",
        "Take ipv6.disable=1 off the kernel's command line, or load the module ipv6.",
    )  # fmt: skip


def ports(facts: Facts) -> HealthItem:
    """The ports that the agent opens; while it runs they are its own."""
    if facts.agent is not None:
        return HealthItem("port-taken", "ok", "Ports", "The agent has its own.")
    if not facts.machine.taken:
        return HealthItem("port-taken", "ok", "Ports", "All that the agent opens are free.")
    lines = tuple(
        f"{taken.port.protocol.upper()} {taken.port.number} ({taken.port.setting}): "
        f"{taken.holder or 'not known who has it'}"
        for taken in facts.machine.taken
    )
    return HealthItem(
        "port-taken", "error", "Another program has a port of the agent's",
        "The agent cannot start while it is so.",
        "End that program, or set another port: other members are told of it.", lines,
    )  # fmt: skip


def disk(facts: Facts) -> HealthItem:
    """Room for state and models."""
    lines = tuple(f"{size(disk.free)} free in {disk.path}" for disk in facts.machine.disks)
    least = min((disk.free for disk in facts.machine.disks), default=DISK_LOW)
    if least >= DISK_LOW:
        return HealthItem("disk-low", "ok", "Disk", "; ".join(lines) or "Nothing is stored yet.")
    full = least < DISK_LEAST
    return HealthItem(
        "disk-low", "error" if full else "warning", "The disk is full" if full else
        "The disk is nearly full",
        "Keys, certificates and logs cannot be written." if full else
        "Hardly any model can be stored, nor a stage of one.",
        "`agent rm` removes a model; models.dir may name a larger disk, models.quota_bytes bounds "
        "what models take.", lines,
    )  # fmt: skip


def memory(facts: Facts) -> HealthItem:
    """Memory that the kernel would give."""
    free = facts.machine.free_memory
    if free >= MEMORY_LOW:
        return HealthItem("memory-low", "ok", "Memory", f"{size(free)} are free.")
    return HealthItem(
        "memory-low", "warning", "Memory runs out",
        f"{size(free)} are free: the kernel may end the agent or an engine at any time.",
        "`agent ps` shows what runs here, `agent drain` moves it to other nodes.",
    )  # fmt: skip


def clock(facts: Facts) -> HealthItem:
    """The clock, as far as this machine alone can say; with members' clocks the agent compares."""
    machine, member = facts.machine, facts.member
    begins = member.not_before if member else 0.0
    if machine.now < max(begins, machine.installed_at):
        than = (
            "this node's certificate begins" if begins > machine.installed_at
            else "this software was installed"
        )  # fmt: skip
        return HealthItem(
            "clock-behind", "error", "The clock is behind",
            f"It shows a time before {than}. Members refuse what is written at such a time.",
            "Set it (`date` shows it), and keep it right by NTP (chrony, systemd-timesyncd).",
        )  # fmt: skip
    if machine.synchronised is False:
        return HealthItem(
            "clock-not-kept", "note", "Nobody keeps the clock right",
            "The kernel knows of no time server that sets it. Two minutes off, members do not hear "
            "each other.",
            "Install chrony or switch on systemd-timesyncd, unless the host does it for this "
            "machine.",
        )  # fmt: skip
    return HealthItem("clock-behind", "ok", "Clock", "Nothing is wrong with it.")


def size(count: float) -> str:
    """Return bytes for people: 512 MiB, 3.5 GiB."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / (1 << 20):.0f} MiB"
