"""The dashboard: one page that the agent and the gateway both serve, and the mesh as it shows it.

`web/` is the page: HTML, CSS and JavaScript modules as they are, without a build step. Cores:
`overview.py` (the mesh as one object), `shelf.py` (which models it has and could run), `state.py`
(the mesh, the gateway, and what who asks may do, as the page polls it). `files.py` reads `web/`;
`serve.py` is the routes that both servers have, `fresh.py` one answer for all who look at once.
"""
