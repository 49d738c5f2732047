"""`agent` with ten times the patience, for commands on an emulated processor that others share.

Only whoever waits for an agent is changed, not the agent: `python patient.py ARGUMENTS`.
"""

from __future__ import annotations

import agent.cli.service
import agent.client
from agent.cli import main

FACTOR = 10


def be_patient() -> None:
    agent.client.CALL_TIMEOUT_S *= FACTOR
    agent.cli.service._START_TIMEOUT_S *= FACTOR
    agent.cli.service._STOP_TIMEOUT_S *= FACTOR


if __name__ == "__main__":
    be_patient()
    main()
