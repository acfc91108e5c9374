"""What a forward multiplies embeddings, scores and narrowed norms by, in every engine alike."""

from collections.abc import Mapping
from typing import Any

from sgate_serve.architecture.spec import ModelSpec


def embedding_scale(spec: ModelSpec) -> float | None:
    """Return what Gemma multiplies embeddings by: the root of the width before removal."""
    return float(spec.norm_size**0.5) if spec.family.norm_offset else None


def attention_scale(spec: ModelSpec, config: Mapping[str, Any], index: int) -> float:
    """Return what scores of a layer are multiplied by, as transformers' classes derive it."""
    base = config.get("query_pre_attn_scalar") or spec.layers[index].head_dim
    scale = float(base**-0.5) if config.get("scale_attn_weights", True) else 1.0
    return scale / (index + 1) if config.get("scale_attn_by_inverse_layer_idx") else scale


def norm_gain(spec: ModelSpec) -> float:
    """Return what RMS norms of a narrowed stream multiply by: they divide by the width before."""
    return float((spec.norm_size / spec.hidden_size) ** 0.5)
