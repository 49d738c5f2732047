"""Is it worth it: an OpenAI server against others, such as this mesh's gateway and an Ollama.

`asking.py` streams the same chats from both, in turns; `timing.py` makes figures of when the tokens
came, `verdict.py` one word of those, `report.py` a page. `python -m agent.comparing` reads what to
compare on stdin, since it may hold keys; the playbook bench.yml uses that.
"""
