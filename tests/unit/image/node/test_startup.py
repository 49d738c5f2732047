"""covey.toml becomes files for the services; with a mistake in it nothing counts."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest
from covey_toml import LINES, SSH_KEY, TICKET, WIFI_PASSWORD, file

from agent.errors import StateError
from image.node import hostfiles, kept
from image.node.settings import Proxy, Settings, Wifi, read
from image.node.startup import start


def begun(tmp_path: Path, text: str, passwords: bytes = b"") -> tuple[list[str], Path]:
    (tmp_path / "covey.toml").write_text(text)
    (tmp_path / "kept").write_bytes(passwords)
    port = tmp_path / "net" / "eth0"
    (port / "device").mkdir(parents=True, exist_ok=True)
    (port / "address").write_text("52:54:00:12:34:56\n")
    (tmp_path / "net" / "lo").mkdir(exist_ok=True)
    run = tmp_path / "run"
    return start(tmp_path / "covey.toml", tmp_path / "kept", run, tmp_path / "net"), run


def test_a_ticket_and_a_name(tmp_path: Path) -> None:
    notes, run = begun(tmp_path, f'ticket = "{TICKET}"\nname = "shed-1"\n')
    assert notes == []
    assert (run / "hostname").read_text() == "shed-1\n"
    assert json.loads((run / "wish").read_bytes()) == {"ticket": TICKET, "name": "shed-1"}
    assert stat.S_IMODE((run / "wish").stat().st_mode) == 0o600
    assert (run / "network").read_text() == ""


def test_no_file_is_no_mistake_and_the_port_names_the_machine(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert start(tmp_path / "none", tmp_path / "none", tmp_path / "run", tmp_path / "net") == []
    assert (tmp_path / "run" / "hostname").read_text() == "covey\n"
    _, run = begun(tmp_path, "# nothing\n")
    assert (run / "hostname").read_text() == "covey-123456\n"
    assert (run / "wish").read_bytes() == b""


def test_with_a_mistake_nothing_counts(tmp_path: Path) -> None:
    notes, run = begun(tmp_path, f'ticket = "{TICKET}"\nname = "Shed 1"\naddress = "10.0.0.1"\n')
    assert [note.partition(":")[0] for note in notes] == ["line 2, name", "line 3, address"]
    assert (run / "notes").read_text().splitlines() == notes
    assert (run / "wish").read_bytes() == b""
    assert TICKET not in "".join(notes)


def test_an_address_by_hand_is_words_that_a_shell_reads(tmp_path: Path) -> None:
    text = 'address = "192.168.1.20/24"\ngateway = "192.168.1.1"\ndns = ["1.1.1.1", "9.9.9.9"]\n'
    _, run = begun(tmp_path, text)
    script = f'. {run / "network"}; echo "$ADDRESS|$GATEWAY|$DNS|$INTERFACE"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "192.168.1.20/24|192.168.1.1|1.1.1.1 9.9.9.9|\n"


def test_passwords_that_were_kept_that_are_damaged(tmp_path: Path) -> None:
    notes, run = begun(tmp_path, 'name = "shed-1"\n', b"{")
    assert len(notes) == 1 and "passwords is damaged" in notes[0]
    assert (run / "hostname").read_text() == "shed-1\n"


def test_what_is_kept_comes_back() -> None:
    text = 'wifi = "Ours"\nwifi_password = "long secret"\nproxy = "http://p:1"\nproxy_user = "u"\n'
    settings = read(f'{text}proxy_password = "pw"\n'.encode()).settings
    assert settings is not None
    back = kept.decode(kept.encode(settings))
    bare = read(b'wifi = "Ours"\nproxy = "http://p:1"\nproxy_user = "u"\n').settings
    assert bare is not None
    assert bare.with_kept(back) == settings
    assert kept.decode(b"") == kept.decode(kept.encode(Settings())) == Settings()
    with pytest.raises(StateError, match="damaged"):
        kept.decode(b"[]")


def test_the_files_are_all_that_services_read() -> None:
    files = hostfiles.of(Settings(), "")
    assert files.keys() == {
        "hostname", "network", "wish", "ssh_keys", "proxy", "wifi.conf", "lacks",
    }  # fmt: skip
    # Nothing is set: a name, and no secret, no server, no wifi.
    assert {name for name, raw in files.items() if raw} == {"hostname"}


def test_a_full_file_becomes_what_services_read(tmp_path: Path) -> None:
    notes, run = begun(tmp_path, file(*LINES).decode())
    assert notes == []
    assert (run / "ssh_keys").read_text() == f"{SSH_KEY}\n"
    assert f'psk="{WIFI_PASSWORD}"' in (run / "wifi.conf").read_text()
    assert (run / "lacks").read_bytes() == b""
    for name in ("ssh_keys", "wifi.conf", "proxy"):
        assert stat.S_IMODE((run / name).stat().st_mode) == 0o600
    script = f". {run / 'proxy'}; printenv https_proxy http_proxy no_proxy"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    proxy = "http://shed:swordfish%231@proxy.lan:3128"
    assert done.stdout.splitlines() == [proxy, proxy, "localhost,127.0.0.1,::1"]


def test_passwords_that_are_nowhere_are_told(tmp_path: Path) -> None:
    text = 'wifi = "Ours"\nproxy = "http://p:1"\nproxy_user = "u"\n'
    notes, run = begun(tmp_path, text)
    assert notes == []
    lacks = (run / "lacks").read_text()
    assert "Write wifi_password" in lacks and "Write proxy_password" in lacks
    assert (run / "wifi.conf").read_bytes() == b""
    passwords = kept.encode(
        Settings(wifi=Wifi("Ours", "long secret"), proxy=Proxy("http://p:1", "u", "pw"))
    )
    _, run = begun(tmp_path, text, passwords)
    assert (run / "lacks").read_bytes() == b""
    assert 'psk="long secret"' in (run / "wifi.conf").read_text()
