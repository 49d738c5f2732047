"""Other APIs than OpenAI's chat completions, translated at the gateway's edge.

`port.py` is what a dialect is, `served.py` which there are and where. Only cores: the requests go
through `proxy.py` and `upstream.py` as OpenAI's do, and `translation.py` is what those hold.
"""
