"""The constants of a decoder's forward, as transformers' config classes and models derive them.

What sets the families apart in numbers: scales, soft caps, rotary settings. A field that the file
leaves out has its family's default; one that is null is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.to_onnx.heads import HeadLayout
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.config_values import rope_parameters
from sgate_serve.spec import ModelSpec

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ForwardConfig:
    """Typed access to those constants of one model."""

    spec: ModelSpec
    values: Mapping[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ForwardConfig":
        spec = checkpoint.spec
        return cls(spec, {**spec.family.defaults, **checkpoint.config})

    @property
    def embedding_scale(self) -> float | None:
        """What Gemma multiplies embeddings by: the root of the width before removal."""
        return float(self.spec.norm_size**0.5) if self.spec.family.norm_offset else None

    @property
    def attention_softcap(self) -> float | None:
        return self.values.get("attn_logit_softcapping")

    @property
    def logit_softcap(self) -> float | None:
        return self.values.get("final_logit_softcapping")

    def attention_scale(self, index: int) -> float:
        """Return what scores of a layer are multiplied by."""
        base = self.values.get("query_pre_attn_scalar") or self.spec.layers[index].head_dim
        scale = float(base**-0.5) if self.values.get("scale_attn_weights", True) else 1.0
        if self.values.get("scale_attn_by_inverse_layer_idx"):
            scale /= index + 1
        return scale

    def rope(self, index: int) -> Mapping[str, Any]:
        """Return the rotary settings of a layer: some families have their own for each kind."""
        kind = FULL if self.spec.windows[index] is None else SLIDING
        nested = self.values.get("rope_parameters") or {}
        theta = self.values.get("rope_theta")
        local = self.values.get("rope_local_base_freq") if kind == SLIDING else None
        if FULL in nested or SLIDING in nested:
            own = {"rope_parameters": nested.get(kind)}
        elif local is not None:
            own = {}
        else:
            return rope_parameters(self.values)
        return rope_parameters(own | {"rope_theta": theta if local is None else local})

    def heads(self, index: int) -> HeadLayout:
        """Return the layout of a layer's heads and how much of them rotates."""
        head_dim = self.spec.layers[index].head_dim
        if not self.spec.family.is_rotary:
            return HeadLayout(head_dim, 0)
        share = self.rope(index).get("partial_rotary_factor", 1.0)
        return HeadLayout(head_dim, int(head_dim * share))
