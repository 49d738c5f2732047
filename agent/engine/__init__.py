"""The engine: llama.cpp stages in processes of their own, joined to rings (design §8).

`process.py` is what runs in an engine process and `supervisor.py` what the agent uses to run one.
`gguf_file.py` and `cut.py` read and cut model files; `frames.py` is the wire format, without I/O.
"""
