"""Who a node is: one Ed25519 key, and everything that follows from it (design §3)."""
