"""Who may ask the gateway, and how much: keys, limits, and the store that keeps both.

Cores without I/O: `key.py` (what a key is), `limits.py` (windows and leases), `ledger.py` (what
each key used and may still use), `schema.py` (tables). Shells: `database.py` (SQLite, PostgreSQL),
`store.py` (queries), `accounts.py` (the ledger of a running gateway, kept in step with the store),
`guard.py` (middlewares), `start.py` (may it begin?), `commands.py` (`gateway keys` and `usage`).
"""
