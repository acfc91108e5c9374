"""The constants of a decoder's forward, as transformers' config classes and models derive them.

What sets the families apart in numbers: scales, soft caps, rotary settings. A field that the file
leaves out has its family's default; one that is null is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.rope import LONGROPE
from sgate_serve.architecture import forward
from sgate_serve.architecture.config import rope_parameters
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint

ORIGINAL_LENGTH = "original_max_position_embeddings"
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
        return forward.embedding_scale(self.spec)

    @property
    def attention_softcap(self) -> float | None:
        return self.values.get("attn_logit_softcapping")

    @property
    def logit_softcap(self) -> float | None:
        return self.values.get("final_logit_softcapping")

    def attention_scale(self, index: int) -> float:
        return forward.attention_scale(self.spec, self.values, index)

    @property
    def max_positions(self) -> int:
        """The longest sequence that one rotary table is right for.

        Beyond its original length longrope turns every token, past ones too, by other factors.
        """
        ropes = [self.rope(index) for index in range(len(self.spec.layers))]
        limits = [int(rope[ORIGINAL_LENGTH]) for rope in ropes if rope["rope_type"] == LONGROPE]
        return min([self.spec.max_positions, *limits])

    def rope(self, index: int) -> dict[str, Any]:
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
            own = dict(self.values)
        own["rope_theta"] = theta if local is None else local
        return self._completed(rope_parameters(own))

    def _completed(self, rope: dict[str, Any]) -> dict[str, Any]:
        """Fill in the original length, which Phi-3 keeps outside, and the growth from it."""
        rope[ORIGINAL_LENGTH] = original = (
            self.values.get(ORIGINAL_LENGTH) or rope.get(ORIGINAL_LENGTH) or self.spec.num_positions
        )
        if rope["rope_type"] == LONGROPE:
            rope.setdefault("factor", self.spec.num_positions / original)
        return rope

    def rotated_share(self, index: int) -> float:
        """Return how much of each head the config lets rotate."""
        return float(self.rope(index).get("partial_rotary_factor", 1.0))

    def heads(self, index: int) -> HeadLayout:
        """Return the layout of a layer's heads and how much of them rotates."""
        head_dim = self.spec.layers[index].head_dim
        share = self.rotated_share(index) if self.spec.family.is_rotary else 0
        return HeadLayout(head_dim, int(head_dim * share))
