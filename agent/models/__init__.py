"""Models: the bundled one, those that Covey knows by name, and the store of what it fetches.

`bundled/` is covey-mini, with everything that made it; `catalogue` lists others with their shapes.
Not for loading or cutting models: agent/engine does that, with any GGUF.

    wanted ──▶ pull ──▶ fetch ──▶ transfer (core: which source sends which piece)
                 │         └────▶ origins (HTTP, files), part file with its journal
                 └──▶ survey ──▶ manifest ──▶ store (records, last use) ◀── service, sharing
    a stage's layers ──▶ layers ──▶ fetch, of those tensors alone
    a head by a model's id ──▶ provision ──▶ header, layers, or a pull
"""
