"""What `tests/bench/gateway.py` measures with: replica, client, and the gateways compared."""
