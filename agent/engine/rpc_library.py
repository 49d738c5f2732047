"""llama.cpp's RPC, as the wheel carries it: a server over this CPU, and servers as devices.

For the engine process alone. llama.cpp's own client knows only IPv4, waits without an end, and ends
the process when a server is lost; `rpc_link.py` stands between it and the network.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from agent.engine import backends
from agent.errors import EngineError

# Where the matrix is that makes logits of rows; it would go to the last server otherwise, and
# logits of a whole vocabulary over the network for each token.
_OUTPUT = b"^(output|token_embd)"


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override: tensors of this name go into that type of buffer."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def _function(name: str, returns: Any, *takes: Any) -> Any:
    try:
        found = backends.function(name)
    except AttributeError:
        raise EngineError(
            "the llama.cpp of this node was built without RPC.",
            hint="Install the llama-cpp-python that `make` builds.",
        ) from None
    found.restype, found.argtypes = returns, list(takes)
    return found


class Server:
    """llama.cpp's RPC server over this machine's CPU; everything is loaded once it is made."""

    def __init__(self) -> None:
        llama_cpp.llama_backend_init()
        by_name = _function("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
        self._devices = (ctypes.c_void_p * 1)(by_name(b"CPU"))
        self._serve = _function(
            "ggml_backend_rpc_start_server", None, ctypes.c_char_p, ctypes.c_char_p,
            ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p,
        )  # fmt: skip

    def run(self, place: str, threads: int) -> None:
        """Serve one client after another on an IPv4 `ADDRESS:PORT`; returns only if that fails."""
        self._serve(place.encode(), None, threads, 1, self._devices)


class Spread:
    """RPC servers as devices of a model: the last layers go to them, in order.

    `places` are `ADDRESS:PORT`, `layers` how many each gets. The rest stays in this process, and
    with it the embedding and the output matrix.
    """

    def __init__(self, places: Sequence[str], layers: Sequence[int]) -> None:
        add = _function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
        device = _function(
            "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        )
        found: list[int] = []
        for place in places:
            server = add(place.encode())
            if not server:
                raise EngineError(f"the RPC server at {place} offers no device.")
            found.append(device(server, 0))
        self._devices = (ctypes.c_void_p * (len(found) + 1))(*found, None)
        # llama.cpp counts the output matrix as one more layer, behind the last.
        counts = [*layers[:-1], layers[-1] + 1]
        self._layers = sum(counts)
        room = llama_cpp.llama_max_devices() - len(counts)
        self._split = (ctypes.c_float * (len(counts) + room))(*counts, *[0] * room)
        cpu = _function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)
        self._overrides = (_Override * 2)(_Override(_OUTPUT, cpu()))

    def arrange(self, parameters: Any) -> None:
        """Write into llama_model_params what goes where; this object must outlive the loading."""
        parameters.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        parameters.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        parameters.tensor_split = ctypes.cast(self._split, type(parameters.tensor_split))
        parameters.n_gpu_layers = self._layers
