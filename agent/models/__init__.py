"""Models that Covey brings along. `bundled` is covey-mini, with everything that made it.

Not for loading or cutting models: agent/engine does that, with any GGUF.
"""
