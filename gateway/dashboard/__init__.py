"""The dashboard that the gateway serves: the mesh by its agent's word, its own requests, a chat.

`view.py` is a core: the gateway's part of what the page polls. `handlers.py` is the shell: routes,
who may do what, and what is passed on to the agent. The page itself is `agent/page/`, the same that
the agent serves.
"""
