"""The network of covey-mini in PyTorch: a plain llama, as a function of its weights.

For training only; the running model is llama.cpp's. Weights of one kind lie stacked over the
layers. torch is an argument, so that importing this file does not need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LAYERED = (
    "attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    layers: int = 12
    width: int = 128
    heads: int = 4
    feed_forward: int = 256
    vocabulary: int = 0
    letter_features: int = 0
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Return how many of the values belong to one head."""
        return self.width // self.heads


def initial_weights(torch: Any, shape: Shape, seed: int) -> dict[str, Any]:
    """Return fresh float32 weights; names as in GGUF without `blk.N.`, layers stacked first."""
    generator = torch.Generator().manual_seed(seed)
    d, f, n, v = shape.width, shape.feed_forward, shape.layers, shape.vocabulary

    def normal(deviation: float, *size: int) -> Any:
        return torch.randn(*size, generator=generator) * deviation

    inner = d**-0.5
    outer = inner / (2 * n) ** 0.5  # keeps the sum over the layers at the size of one
    weights = {
        "token_embd": normal(0.05, v, d),
        "letters": normal(0.05, shape.letter_features, d),
        "output": normal(0.5 * inner, v, d),
        "output_norm": torch.ones(d),
        "attn_norm": torch.ones(n, d),
        "ffn_norm": torch.ones(n, d),
        "attn_q": normal(inner, n, d, d),
        "attn_k": normal(inner, n, d, d),
        "attn_v": normal(inner, n, d, d),
        "attn_output": normal(outer, n, d, d),
        "ffn_gate": normal(inner, n, f, d),
        "ffn_up": normal(inner, n, f, d),
        "ffn_down": normal(outer, n, d, f),
    }
    return {name: weight.requires_grad_() for name, weight in weights.items()}


def with_letters(weights: dict[str, Any], features: Any) -> dict[str, Any]:
    """Return the weights with the letters of each token added into its embedding.

    `features` is (vocabulary, letter features), ones where a token has a letter at a place. So
    what is learned about "m" at the start of a word holds for every token that begins with it.
    The running model needs no letters: the sum is an ordinary embedding.
    """
    rest = {name: weight for name, weight in weights.items() if name != "letters"}
    return rest | {"token_embd": weights["token_embd"] + features @ weights["letters"]}


def hidden_states(torch: Any, shape: Shape, weights: dict[str, Any], ids: Any) -> Any:
    """Return what the last layer gives, normed: (rows, length) ids to (rows, length, width)."""
    functional = torch.nn.functional
    rows, length = ids.shape
    d, half = shape.width, shape.head_width // 2
    angles = torch.outer(
        torch.arange(length, dtype=torch.float32),
        shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half),
    )
    cosine, sine = angles.cos()[:, None, :], angles.sin()[:, None, :]
    cosine2, sine2 = torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)

    future = torch.full((length, length), float("-inf")).triu(1)
    scale = shape.head_width**-0.5

    def turned(x: Any) -> Any:
        return x * cosine2.to(x.dtype) + x.roll(half, -1) * sine2.to(x.dtype)

    def normed(x: Any, weight: Any) -> Any:
        return functional.rms_norm(x, (d,), weight, shape.norm_epsilon)

    x = functional.embedding(ids, weights["token_embd"])
    for norm1, norm2, q_w, k_w, v_w, o_w, gate_w, up_w, down_w in zip(
        *(weights[kind].unbind(0) for kind in LAYERED), strict=True
    ):
        qkv = functional.linear(normed(x, norm1), torch.cat((q_w, k_w, v_w)))
        q, k, v = qkv.view(rows, length, 3, shape.heads, shape.head_width).unbind(2)
        # Written out: for rows this short it is twice as fast as PyTorch's fused attention.
        scores = turned(q).transpose(1, 2) @ turned(k).permute(0, 2, 3, 1)
        y = torch.softmax(scores * scale + future, -1) @ v.transpose(1, 2)
        x = x + functional.linear(y.transpose(1, 2).reshape(rows, length, d), o_w)
        both = functional.linear(normed(x, norm2), torch.cat((gate_w, up_w)))
        gate, up = both.chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, down_w)
    return normed(x, weights["output_norm"])


def answer_loss(
    torch: Any, shape: Shape, weights: dict[str, Any], ids: Any, targets: Any
) -> tuple[Any, int]:
    """Return (summed cross entropy, count) over the targets that are not negative."""
    x = hidden_states(torch, shape, weights, ids)
    wanted = targets >= 0
    logits = torch.nn.functional.linear(x[wanted], weights["output"]).float()
    loss = torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="sum")
    return loss, int(wanted.sum())
