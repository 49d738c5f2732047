"""Prove that llama.cpp computes on this CPU, in a process of its own, before an engine does.

On CPUs that announce AMX but mask it (many virtual machines) a natively built llama.cpp dies by a
signal on its first batched matrix product. The probe decodes a tiny synthetic model that has a
layer of each common weight type; when it dies, it is tried again without llama.cpp's extra buffer
types (repacked and AMX weights), which the engine then goes without. The result is kept for each
llama.cpp build and CPU. Used by `process.py`; `python -m agent.engine.selftest` is the probe.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.engine.llama_build import read_cpu_flags
from agent.errors import EngineError

log = logging.getLogger(__name__)

# A probe takes well under a second; a loaded machine may need much more.
_PROBE_TIMEOUT_S = 60.0
_WITHOUT = "--without-extra-bufts"
# Types whose matrix products have kernels of their own.
_WEIGHT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
_N_EMBD = 256
_VOCABULARY = 256
_CONTEXT = 256
_BATCH = 64
# Fills quantised blocks: as a half-precision scale it is 0.0006, so every value is finite.
_FILL_BYTE = 0x11


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How llama.cpp computes on this machine without dying."""

    use_extra_bufts: bool


def prove(cache: Path | None, probe: Sequence[str] = ()) -> Proof:
    """Return how to load models here, from the cache or by probing.

    `probe` is the command that probes, by default this module. Raises EngineError when llama.cpp
    dies either way.
    """
    kept = None if cache is None else cache / f"selftest-{_key()}.json"
    if kept is not None:
        try:
            return msgspec.json.decode(kept.read_bytes(), type=Proof)
        except (OSError, msgspec.DecodeError):
            log.debug("no self-test result in %s", kept)
    command = list(probe) or [sys.executable, "-m", "agent.engine.selftest"]
    first = _run(command)
    if first is None:
        return _keep(kept, Proof(use_extra_bufts=True))
    log.warning("the self-test %s; trying without extra buffer types", first)
    second = _run([*command, _WITHOUT])
    if second is None:
        return _keep(kept, Proof(use_extra_bufts=False))
    raise EngineError(
        f"llama.cpp does not work on this CPU: its self-test {first}, and without extra "
        f"buffer types it {second}.",
        hint="Build llama-cpp-python again on this machine.",
    )


def _key() -> str:
    found = importlib.util.find_spec("llama_cpp")
    library = b""
    if found is not None and found.origin is not None:
        for path in sorted((Path(found.origin).parent / "lib").glob("libggml*")):
            status = path.stat()
            library += f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode()
    try:
        flags = sorted(read_cpu_flags())
    except OSError:
        flags = []
    version = importlib.metadata.version("llama-cpp-python")
    facts = f"{version} {platform.machine()} {' '.join(flags)}".encode() + library
    return hashlib.sha256(facts).hexdigest()[:16]


def _keep(path: Path | None, proof: Proof) -> Proof:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_bytes(msgspec.json.encode(proof))
            partial.rename(path)
        except OSError as error:
            log.warning("cannot keep the self-test result in %s: %s", path, error.strerror)
    return proof


def _run(command: Sequence[str]) -> str | None:
    """Run a probe; None when it passed, else what it did, as a verb."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {_PROBE_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"was killed by {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()
    return f"ended with code {done.returncode} ({said[-1] if said else 'no message'})"


def _write_probe_model(path: Path) -> None:
    """Write a model of one layer for each weight type."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(len(_WEIGHT_TYPES))
    writer.add_feed_forward_length(_N_EMBD)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_N_EMBD // 4)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("none")

    def matrix(name: str, type_name: str) -> None:
        kind = gguf.GGMLQuantizationType[type_name]
        if type_name == "F32":
            writer.add_tensor(name, np.full((_N_EMBD, _N_EMBD), 0.01, np.float32))
            return
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.full((_N_EMBD, _N_EMBD // block * size), _FILL_BYTE, np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)

    matrix("token_embd.weight", "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(_N_EMBD, np.float32))
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for layer, type_name in enumerate(_WEIGHT_TYPES):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(_N_EMBD, np.float32))
        for name in names:
            matrix(f"blk.{layer}.{name}.weight", type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _probe(use_extra_bufts: bool) -> str | None:
    """Decode a batch and a single token; None when the logits are sane, else what is wrong."""
    import numpy as np

    from agent.engine.llama import Context, ContextLimits, Weights

    with tempfile.TemporaryDirectory(prefix="covey-selftest-") as folder:
        path = Path(folder) / "probe.gguf"
        _write_probe_model(path)
        weights = Weights(path, use_extra_bufts=use_extra_bufts)
        context = Context(weights, ContextLimits(_CONTEXT, _BATCH, 1, 1), keeps_rows=False)
        position = 0
        for count in (_BATCH, 1):
            positions = np.arange(position, position + count, dtype=np.int32)
            zeros = np.zeros(count, np.int32)
            context.decode_tokens(
                positions % _VOCABULARY, zeros, positions, np.ones(count, np.int8)
            )
            if not np.isfinite(context.logits()).all():
                return f"a batch of {count} gave logits that are not finite"
            position += count
        context.close()
        weights.close()
    return None


def main() -> int:
    """Probe; 0 when llama.cpp computes."""
    wrong = _probe(use_extra_bufts=_WITHOUT not in sys.argv)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
