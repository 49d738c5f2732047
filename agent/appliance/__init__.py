"""The appliance, as the command line and the agent on it meet it.

`door.py` speaks with what writes updates there, which has rights that an agent need not have
(`image/node/updating.py`); `sources.py` fetches an update from a file, a URL or a member.
"""
