"""Models: the one that Covey brings along (`bundled/`), and the store of those that it fetches.

Not for loading or cutting models: agent/engine does that, with any GGUF.

    wanted ──▶ pull ──▶ fetch ──▶ transfer (core: which source sends which piece)
                 │         └────▶ origins (HTTP, files), part file with its journal
                 └──▶ survey ──▶ manifest ──▶ store (records, last use) ◀── service, sharing
    a stage's layers ──▶ layers ──▶ fetch, of those tensors alone
"""
