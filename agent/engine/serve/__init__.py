"""The OpenAI HTTP server of a head: one loaded model, its text in and out.

`app.py` is the shell (aiohttp); everything else is a core. It knows the ring only as a
`generation.Model`, so it serves a whole model and one cut over many nodes alike.
"""
