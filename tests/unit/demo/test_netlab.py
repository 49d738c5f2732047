"""Networks of namespaces are never built on the machine itself."""

import pytest

from agent.demo import netlab
from agent.demo.netlab import Lan
from agent.errors import EnvironmentFault


def test_a_lan_is_refused_outside_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVEY_SANDBOX", raising=False)
    monkeypatch.setattr(netlab, "_ip", lambda *_: pytest.fail("it built something"))
    with pytest.raises(EnvironmentFault, match="only built in a sandbox"):
        Lan()
