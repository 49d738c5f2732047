"""The gateway: the separate program that OpenAI clients talk to; it picks a replica per request.

It knows the mesh only through the local agent's socket (`agent_source.py`, the one module that
imports anything of `agent`), and outside OpenAI servers by name. Cores without I/O: `config.py`,
`routing.py`, `errors.py`, `usage.py`; shells: `agent_source.py`, `watch.py`, `proxy.py`, `app.py`,
`bounds.py`, `listen.py`, `tls.py`, `translating.py`, `config_file.py`, `serve.py`; of several
processes, `workers.py` is the parent and `worker.py` what a child has of it; `keys/` knows who may
ask; `cli.py` is the command line. `dialects/` are other APIs than OpenAI's, cores too.
"""
