"""llama.cpp's forward pass of the architectures `llama` and `deci`, in float64 from a GGUF file.

Written from llama.cpp's own code (src/models/deci.cpp): an attention without an MLP after it is
lost, the width of a head comes from the keys, and dimensions 2i and 2i + 1 rotate together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class GgufModel:
    """A file as it is stored: its metadata, and its tensors in float64."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors: Mapping[str, Floats] = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }
        self.name = str(self.fields["general.architecture"])

    def key(self, name: str) -> Any:
        return self.fields[f"{self.name}.{name}"]

    def per_layer(self, name: str) -> list[int]:
        value = self.key(name)
        return value if isinstance(value, list) else [value] * self.key("block_count")

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        x = self.tensors["token_embd.weight"][tokens]
        for layer in range(self.key("block_count")):
            x = self._layer(layer, x)
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self._normed("output_norm", x) @ head.T

    def _layer(self, layer: int, x: Floats) -> Floats:
        heads = self.per_layer("attention.head_count")[layer]
        kv_heads = self.per_layer("attention.head_count_kv")[layer]
        if not self.per_layer("feed_forward_length")[layer]:
            return x
        prefix = f"blk.{layer}"
        if heads:
            x = x + self._attention(prefix, self._normed(f"{prefix}.attn_norm", x), heads, kv_heads)
        y = self._normed(f"{prefix}.ffn_norm", x)
        gate, up = self._linear(f"{prefix}.ffn_gate", y), self._linear(f"{prefix}.ffn_up", y)
        return x + self._linear(f"{prefix}.ffn_down", gate / (1 + np.exp(-gate)) * up)

    def _attention(self, prefix: str, x: Floats, heads: int, kv_heads: int) -> Floats:
        width, length = self.key("attention.key_length"), len(x)
        shapes = {"q": heads, "k": kv_heads, "v": kv_heads}
        q, k, v = (
            self._linear(f"{prefix}.attn_{name}", x).reshape(length, count, width)
            for name, count in shapes.items()
        )
        q, k = self._rotated(q), self._rotated(k)
        k, v = (np.repeat(one, heads // kv_heads, axis=1) for one in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        return self._linear(f"{prefix}.attn_output", mixed)

    def _rotated(self, x: Floats) -> Floats:
        width = x.shape[-1]
        factors = self.tensors.get("rope_freqs.weight", np.ones(width // 2))
        frequencies = self.key("rope.freq_base") ** (-np.arange(0, width, 2) / width) / factors
        angles = np.arange(len(x))[:, None, None] * frequencies
        even, odd = x[..., ::2], x[..., 1::2]
        turned = even + 1j * odd
        turned = turned * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    def _linear(self, name: str, x: Floats) -> Floats:
        bias = self.tensors.get(f"{name}.bias", np.zeros(1))
        return np.asarray(x @ self.tensors[f"{name}.weight"].T + bias)

    def _normed(self, name: str, x: Floats) -> Floats:
        mean = (x**2).mean(-1, keepdims=True) + self.key("attention.layer_norm_rms_epsilon")
        return np.asarray(x / np.sqrt(mean) * self.tensors[f"{name}.weight"])
