"""What `failover.py` does to a mesh, and the client that watches its streams meanwhile."""
