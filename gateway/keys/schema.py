"""The tables of a store, as numbered migrations in SQL that SQLite and PostgreSQL both take.

A core. A migration that has been released is never changed; the next one gets the next number. Each
runs in a transaction of its own (`store.py`), which also writes its number.

    covey_keys       a key, by its id; only its secret's hash
    covey_gateways   each run of a gateway, and when the store last heard of it (unix seconds)
    covey_usage      what a gateway's run counted of a key's day (UTC) and model: totals
    covey_leases     how many tokens of a key's day a gateway's run may use in all
"""

from __future__ import annotations

VERSION_TABLE = "CREATE TABLE IF NOT EXISTS covey_schema (version BIGINT PRIMARY KEY)"

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE covey_keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            hash TEXT NOT NULL UNIQUE,
            models TEXT NOT NULL,
            requests_per_minute BIGINT,
            tokens_per_minute BIGINT,
            tokens_per_day BIGINT,
            weight DOUBLE PRECISION NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            expires DOUBLE PRECISION,
            revoked DOUBLE PRECISION
        )""",
        "CREATE UNIQUE INDEX covey_keys_name ON covey_keys (name) WHERE revoked IS NULL",
        """CREATE TABLE covey_gateways (
            id TEXT PRIMARY KEY,
            seen DOUBLE PRECISION NOT NULL
        )""",
        """CREATE TABLE covey_usage (
            key_id TEXT NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            gateway TEXT NOT NULL REFERENCES covey_gateways (id),
            requests BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            estimated BIGINT NOT NULL,
            PRIMARY KEY (key_id, day, model, gateway)
        )""",
        "CREATE INDEX covey_usage_day ON covey_usage (day)",
        """CREATE TABLE covey_leases (
            key_id TEXT NOT NULL,
            day TEXT NOT NULL,
            gateway TEXT NOT NULL REFERENCES covey_gateways (id),
            granted BIGINT NOT NULL,
            PRIMARY KEY (key_id, day, gateway)
        )""",
    ),
    ("ALTER TABLE covey_keys ADD COLUMN admin BIGINT NOT NULL DEFAULT 0",),
)
