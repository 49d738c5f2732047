"""The description of all that the gateway serves, OpenAPI 3.1, as data: `/openapi.json`.

`words.py` has the words, the modules of the APIs say with them what is theirs, and `document.py`
puts it together. Only cores. A test holds it against the routes, and schemathesis against answers.
"""
