"""`python -m agent` is the console script `agent`."""

from agent.cli import main

main()
