"""A forward in numpy of models with recurrent layers, by the spec alone: no graph computes them.

It follows the definition token by token, in float64, and shares no code with transformers.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from converters.to_onnx.rope import attention_factor, inverse_frequencies
from sgate_serve.architecture.activations import apply_activation
from sgate_serve.architecture.family import (
    ATTENTION,
    CAUSAL_LM,
    CLASSIFICATION,
    DECAY,
    DOWN,
    GATE,
    KEY,
    MLP,
    OUTPUT,
    OUTPUT_GATE,
    QUERY,
    RENEWAL,
    UP,
    VALUE,
)
from sgate_serve.architecture.recurrent_layers import channel_spans
from sgate_serve.architecture.spec import ModelSpec

Floats = NDArray[np.float64]


class HybridForward:
    """One model in numpy: call it with token ids."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self.spec = spec
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}

    def __call__(self, tokens: NDArray[np.int64], padding: int | None) -> NDArray[np.float32]:
        """Return logits of all tokens, of a classifier those of the last one before padding."""
        family, spec = self.spec.family, self.spec
        x = self.tensors[f"{family.embedding}.weight"][tokens]
        for index, layer in enumerate(spec.layers):
            attend = self.recurrence if layer.is_recurrent else self.attention
            x = x + attend(index, self.normed(x, family.norm_name(index, ATTENTION)))
            feed = self.mixture if layer.experts else self.mlp
            x = x + feed(index, self.normed(x, family.norm_name(index, MLP)))
        x = self.normed(x, str(family.final_norm))
        if spec.task == CLASSIFICATION:
            last = int(np.flatnonzero(tokens != padding)[-1])
            x = x[last : last + 1] @ self.tensors["score.weight"].T
        if spec.task == CAUSAL_LM:
            head = family.embedding if spec.tied_head else family.head
            x = x @ self.tensors[f"{head}.weight"].T
        return x.astype(np.float32)

    def normed(self, x: Floats, name: str) -> Floats:
        return self.unit(x) * (self.spec.family.norm_offset + self.tensors[f"{name}.weight"])

    def unit(self, x: Floats) -> Floats:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + self.spec.norm_eps))

    def linear(self, index: int, role: str, x: Floats) -> Floats:
        module, rows = self.spec.family.linear(index, role), self.spec.role_rows(index, role)
        y = x @ self.tensors[f"{module}.weight"][rows].T
        return y + self.tensors[f"{module}.bias"][rows] if self.spec.has_bias(index, role) else y

    def mlp(self, index: int, x: Floats) -> Floats:
        units = apply_activation(self.spec.activation, self.linear(index, GATE, x))
        return self.linear(index, DOWN, units * self.linear(index, UP, x))

    def mixture(self, index: int, x: Floats) -> Floats:
        family, layer = self.spec.family, self.spec.layers[index]
        logits = x @ self.tensors[f"{family.router_name(index)}.weight"].T
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        shares[logits < np.sort(logits)[:, -layer.top_k, None]] = 0
        shares /= shares.sum(-1, keepdims=True) if self.spec.norm_topk_prob else 1
        assert family.mixture is not None
        gate = self.tensors[f"{family.layer_name(index)}.{family.mixture.shared_gate}.weight"]
        out = sigmoid(x @ gate.T) * self.expert(index, None, x)
        for number in range(len(layer.experts)):
            out += shares[:, number, None] * self.expert(index, number, x)
        return out

    def expert(self, index: int, number: int | None, x: Floats) -> Floats:
        gate, up, down = (
            self.tensors[f"{self.spec.family.expert_linear(index, number, role)}.weight"]
            for role in (GATE, UP, DOWN)
        )
        units = apply_activation(self.spec.activation, x @ gate.T) * (x @ up.T)
        return np.asarray(units @ down.T)

    def attention(self, index: int, x: Floats) -> Floats:
        layer, length = self.spec.layers[index], len(x)
        query, key, value, gate = (
            self.linear(index, role, x).reshape(length, -1, layer.head_dim)
            for role in (QUERY, KEY, VALUE, OUTPUT_GATE)
        )
        norms = list(self.spec.head_norm_sizes(index))
        query, key = self.normed(query, norms[0]), self.normed(key, norms[1])
        query, key = self.rotated(index, query), self.rotated(index, key)
        key, value = (np.repeat(one, layer.queries_per_kv, axis=1) for one in (key, value))
        scores = np.einsum("ihd,jhd->hij", query, key) * self.spec.attention_scales[index]
        scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        out = np.einsum("hij,jhd->ihd", shares, value) * sigmoid(gate)
        return self.linear(index, OUTPUT, out.reshape(length, -1))

    def rotated(self, index: int, x: Floats) -> Floats:
        rope = self.spec.ropes[index]
        assert rope is not None
        frequencies = inverse_frequencies(rope.settings, self.spec.rotary_dims(index))
        pairs, factor = len(frequencies), attention_factor(rope.settings)
        angles = (np.arange(len(x), dtype=np.float32)[:, None] * frequencies)[:, None]
        cos, sin = np.cos(angles) * factor, np.sin(angles) * factor
        first, second, rest = np.split(x, [pairs, 2 * pairs], axis=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return np.concatenate([*turned, rest], axis=-1)

    def recurrence(self, index: int, x: Floats) -> Floats:
        layer, length = self.spec.layers[index], len(x)
        query, key, value = self.convolved(index, x)
        query, key = (
            np.repeat(one.reshape(length, -1, layer.key_dim), layer.queries_per_kv, axis=1)
            for one in (query, key)
        )
        query, key = (one / np.sqrt((one**2).sum(-1, keepdims=True) + 1e-6) for one in (query, key))
        value, gate = (
            one.reshape(length, -1, layer.head_dim)
            for one in (value, self.linear(index, OUTPUT_GATE, x))
        )
        renewal = sigmoid(self.linear(index, RENEWAL, x))
        decay, step = (self.named(index, name) for name in ("A_log", "dt_bias"))
        kept = np.exp(-np.exp(decay) * np.logaddexp(0, self.linear(index, DECAY, x) + step))
        state, out = np.zeros((layer.num_heads, layer.key_dim, layer.head_dim)), value.copy()
        for t in range(length):
            state = state * kept[t][:, None, None]
            new = value[t] - np.einsum("hk,hkv->hv", key[t], state)
            state = state + np.einsum("hk,hv->hkv", key[t], new * renewal[t][:, None])
            out[t] = np.einsum("hk,hkv->hv", query[t], state) * self.spec.attention_scales[index]
        out = self.unit(out) * self.named(index, "norm.weight") * gate * sigmoid(gate)
        return self.linear(index, OUTPUT, out.reshape(length, -1))

    def convolved(self, index: int, x: Floats) -> list[Floats]:
        """Return query, key and value, after a convolution over the last tokens of each row."""
        weight, found = self.named(index, "conv1d.weight")[:, 0], []
        for role, span in channel_spans(self.spec.layers[index]).items():
            kernel = weight[span]
            past = np.pad(self.linear(index, role, x), ((kernel.shape[1] - 1, 0), (0, 0)))
            taps = (past[i : i + len(x)] * kernel[:, i] for i in range(kernel.shape[1]))
            found.append(apply_activation(self.spec.activation, sum(taps, np.zeros(1))))
        return found

    def named(self, index: int, name: str) -> Floats:
        return self.tensors[f"model.layers.{index}.linear_attn.{name}"]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))
