"""The Covey node: the `agent` daemon, its command line and everything it runs.

Dependencies point one way: cli → daemon → services → core types (docs/contributing.md).
"""

__version__ = "0.1.0"
