"""Models that Covey brings along, and those that it knows by name.

`bundled` is covey-mini, with everything that made it; `catalogue` lists others, which are fetched
from elsewhere, with their shapes. Not for loading or cutting models: agent/engine does that, with
any GGUF.
"""
