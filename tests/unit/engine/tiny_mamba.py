"""A random-weight Mamba: a model with a recurrent state, of an architecture that is never cut."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import tiny_models as tiny

LAYERS, E, INNER, STATE, RANK, KERNEL = 5, 64, 128, 16, 4, 4


def write(path: Path) -> Path:
    """Write it, with an SPM vocabulary."""
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_name("tiny")
    writer.add_context_length(tiny.CONTEXT)
    writer.add_embedding_length(E)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(tiny.VOCABULARY)
    tiny.add_vocabulary(writer, tiny.VOCABULARY)

    def add(name: str, *shape: int, scale: float = 1.0, base: float = 0.0) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(name, np.float32(base) + np.float32(scale) * values)

    add("token_embd.weight", tiny.VOCABULARY, E)
    add("output_norm.weight", E, scale=0.1, base=1.0)
    add("output.weight", tiny.VOCABULARY, E, scale=E**-0.5)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        add(prefix + "attn_norm.weight", E, scale=0.1, base=1.0)
        add(prefix + "ssm_in.weight", 2 * INNER, E, scale=E**-0.5)
        add(prefix + "ssm_conv1d.weight", INNER, KERNEL, scale=0.5)
        add(prefix + "ssm_conv1d.bias", INNER, scale=0.1)
        add(prefix + "ssm_x.weight", RANK + 2 * STATE, INNER, scale=INNER**-0.5)
        add(prefix + "ssm_dt.weight", INNER, RANK, scale=0.5)
        add(prefix + "ssm_dt.bias", INNER, scale=0.1)
        add(prefix + "ssm_a", INNER, STATE, scale=0.1, base=-1.0)
        add(prefix + "ssm_d", INNER)
        add(prefix + "ssm_out.weight", E, INNER, scale=INNER**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
