"""What `tests/bench/connections.py` measures with: useless connections, and a replica to waste."""
