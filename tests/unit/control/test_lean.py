"""What libp2p asks of a machine beside what we use of it."""

from __future__ import annotations

from pathlib import Path

import dns.asyncresolver

from agent.control import lean


def test_it_starts_without_a_nameserver(tmp_path: Path) -> None:
    lean.prepare()
    lean.prepare()
    empty = tmp_path / "resolv.conf"
    empty.write_text("search home\n")
    for file in (empty, tmp_path / "none"):
        assert not dns.asyncresolver.Resolver(str(file)).nameservers
    empty.write_text("nameserver 192.0.2.1\n")
    assert dns.asyncresolver.Resolver(str(empty)).nameservers == ["192.0.2.1"]
