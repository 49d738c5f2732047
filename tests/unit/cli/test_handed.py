"""A ticket as a file: it is waited for, read by who is in no mesh, and left alone by a member."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import config
from agent.cli import handed, service
from agent.errors import UsageError
from agent.membership.store import StateDir


def settings(folder: Path) -> config.Config:
    return config.load(Path("/dev/null"), {}, [f"node.state_dir={folder}"])[0]


def test_the_first_line_is_the_ticket(tmp_path: Path) -> None:
    file = tmp_path / "ticket"
    file.write_text(" abc \r\nGood for one machine.\n")
    found = handed.enrolment(settings(tmp_path / "state"), file)
    assert found is not None
    assert (found.ticket, found.bootstrap, found.name) == ("abc", (), "")


def test_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(handed, "_POLL_S", 0.01)
    file = tmp_path / "ticket"
    file.touch()
    writer = threading.Timer(0.05, file.write_text, ["abc"])
    writer.start()
    found = handed.enrolment(settings(tmp_path / "state"), file)
    writer.join()
    assert found is not None
    assert found.ticket == "abc"
    assert capsys.readouterr().err == f"Waiting for a ticket in {file}.\n"


def test_a_member_needs_none(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state").lock() as state:
        state.create_mesh("m", "den", time.time())
    assert handed.enrolment(settings(tmp_path / "state"), tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_what_is_no_ticket_file_is_said(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ticket"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"the ticket in {file} cannot be read") as caught:
        handed.enrolment(settings(tmp_path / "state"), file)
    assert "agent invite" in caught.value.hint


def test_the_first_process_of_a_container_ends_when_it_is_told_to(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from agent import config;"
        "from agent.cli import handed;"
        "where = Path(sys.argv[1]);"
        "made = config.load(Path('/dev/null'), {}, [f'node.state_dir={where}/state'])[0];"
        "handed.enrolment(made, where / 'ticket')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting for a ticket")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_it_is_for_the_foreground(tmp_path: Path) -> None:
    done = CliRunner().invoke(service.up, ["--ticket-file", str(tmp_path / "t")])
    assert isinstance(done.exception, UsageError)
    assert "--foreground" in done.exception.message
    assert "agent join -" in done.exception.hint
