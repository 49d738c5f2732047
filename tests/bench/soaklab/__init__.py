"""What `soak.py` is made of: nodes that come and go, what processes hold, and its trend."""
