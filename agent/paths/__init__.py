"""How packets reach a peer: candidates, probes, the choice of a path, birthday probing, MTU.

All of it is cores: who sends, hears and asks the clock is `agent/probing`, `agent/portmap` and
`agent/relay`. Begin with `engine.py`, then `pair.py`, whose rules stand as a table at the top.
"""
