"""llama.cpp's own RPC server over this machine's CPU: `python rpc_server.py ADDRESS:PORT [CACHE]`.

CACHE is a folder for the tensors that came (`rpc-server -c`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import llama_cpp


def library(name: str) -> Any:
    """Return one of ggml's libraries, as llama-cpp-python carries them."""
    folder = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
    return ctypes.CDLL(os.path.join(folder, name))


def main() -> None:
    """Serve until killed."""
    llama_cpp.llama_backend_init()
    by_name = library("libggml.so.0").ggml_backend_dev_by_name
    by_name.restype, by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    devices = (ctypes.c_void_p * 1)(by_name(b"CPU"))
    serve = library("libggml-rpc.so.0").ggml_backend_rpc_start_server
    serve.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p,
    ]  # fmt: skip
    cache = sys.argv[2].encode() if len(sys.argv) > 2 else None
    serve(sys.argv[1].encode(), cache, 1, 1, devices)


if __name__ == "__main__":
    main()
