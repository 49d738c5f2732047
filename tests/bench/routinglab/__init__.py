"""A world of virtual time for `routing.py`: replicas, requests, our router and its peers.

`replica.py` is a server that batches continuously, `requests.py` what clients ask and when,
`cases.py` the situations, `peers.py` others' ways to choose, `ours.py` the gateway's own router,
and `world.py` runs one way to choose through one situation.
"""
