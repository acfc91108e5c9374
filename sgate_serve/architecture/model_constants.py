"""What a config says of a model: its sizes, what its layers hold, constants of its forward."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sgate_serve.architecture.family import (
    FULL_ATTENTION,
    LINEAR_ATTENTION,
    SLIDING_ATTENTION,
    Axes,
    Family,
    TaskHead,
)
from sgate_serve.architecture.gated_units import ClampedUnits
from sgate_serve.architecture.rope import Rope
from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.architecture.shared_keys import NUM_SHARED


@dataclass(frozen=True)
class ModelConstants:
    """The values that a `ModelSpec` is read with, and what follows from them without tensors."""

    family: Family
    task: str
    layers: tuple[LayerShape, ...]
    hidden_size: int
    # What residual RMS norms divide by: the hidden size before residual dimensions were removed.
    norm_size: int
    vocab_size: int
    num_positions: int
    num_types: int
    num_labels: int
    head_units: int
    tied_head: bool
    biased_roles: frozenset[str]
    has_norm_bias: bool
    # The family's tensors outside the layers, and its part on top, as far as the config has them.
    outside: Mapping[str, Axes]
    on_top: TaskHead

    # The forward. Scales, windows and ropes have one entry per layer; a window is in tokens (of an
    # encoder, to each side), None for full attention, and a rope is None in layers that do not
    # rotate.
    norm_eps: float
    activation: str
    attention_scales: tuple[float, ...]
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    attention_softcap: float | None
    logit_softcap: float | None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    first_position: int = 0
    # Whether both blocks of a layer read the stream before it, which then adds both.
    has_parallel_blocks: bool = False
    # Whether the shares of the experts that a token uses add up to 1, before they are multiplied.
    norm_topk_prob: bool = False
    routed_scaling: float = 1.0
    # How units are gated, where that is not act(gate) · up.
    clamped_units: ClampedUnits | None = None
    # How many tokens the convolution of a recurrent layer sees.
    kernel: int = 0
    # The width of the vectors that layers read besides the stream, and the rows of their table.
    input_width: int = 0
    input_vocab: int = 0

    # What pruning changed besides widths: biases that the family does not have, and modules that
    # store fewer rows or columns than their dimensions and have index vectors.
    extra_biases: frozenset[str] = frozenset()
    lowered: Mapping[str, Lowered] = field(default_factory=dict)
    # Base models are often saved without their pooler; a config cannot say so, the files do.
    lacks_pooler: bool = False

    @property
    def head(self) -> TaskHead:
        """The part on top of the stack for this model's task."""
        return replace(self.on_top, tensors={}) if self.lacks_pooler else self.on_top

    @property
    def is_encoder(self) -> bool:
        """Say whether every token attends to all others, so that the model does not decode."""
        return self.family.is_encoder

    @property
    def max_positions(self) -> int:
        """The longest sequence; RoBERTa's position table has rows before the first position."""
        return self.num_positions - self.first_position

    @property
    def embedding_scale(self) -> float | None:
        """The factor on embeddings: for Gemma the square root of the width before removal."""
        if self.family.scales_embeddings:
            return float(self.norm_size**0.5)
        return None if self.embedding_multiplier == 1 else self.embedding_multiplier

    @property
    def norm_gain(self) -> float:
        """The factor missing from a stock RMS norm over the narrowed stream.

        It divides by the width that is left instead of the width before removal.
        """
        return float((self.norm_size / self.hidden_size) ** 0.5)

    def rotary_dims(self, index: int) -> int:
        """Return how many dimensions of each head rotate in a layer; they are the first ones."""
        rope = self.ropes[index]
        return 0 if rope is None else int(self.layers[index].head_dim * rope.rotated_share)

    def head_type(self, index: int) -> str:
        """Return the type of a layer, where layers of a type have heads of their own; else one."""
        if self.layers[index].is_recurrent:
            return LINEAR_ATTENTION
        has_window = self.windows[index] is not None
        return SLIDING_ATTENTION if self.family.has_heads_by_type and has_window else FULL_ATTENTION

    @property
    def has_uniform_layers(self) -> bool:
        return len(set(self.layers)) <= 1

    @property
    def has_experts(self) -> bool:
        return any(layer.experts for layer in self.layers)

    @property
    def has_recurrent_layers(self) -> bool:
        return any(layer.is_recurrent for layer in self.layers)

    @property
    def for_torch_alone(self) -> str | None:
        """Say what the layers have that no other engine runs yet, by the field of the config."""
        if not all(layer.has_keys for layer in self.layers):
            return f"layers without keys of their own ({NUM_SHARED})"
        inputs = self.family.layer_inputs
        return None if inputs is None else f"layers with inputs of their own ({inputs.width})"
