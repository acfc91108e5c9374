"""The words for a model's parts, and the fields of an entry in the family table.

Tensors have the names that a model with a head gives them (`model.layers.0…`,
`bert.encoder.layer.0…`), whatever the files of a folder call them. The table itself is
`sgate_serve.architecture.families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from sgate_serve.architecture.config_field import Fields
from sgate_serve.architecture.config_fields import CONFIG_CLASSES, EXTRA_KEYS
from sgate_serve.architecture.layer_inputs import LayerInputs
from sgate_serve.architecture.mixture import Branch, Mixture
from sgate_serve.architecture.recurrence import Recurrence

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
# What the output of attention is multiplied by; and, in recurrent layers, how much of a head's
# state a token renews and keeps.
OUTPUT_GATE, RENEWAL, DECAY = "output_gate", "renewal", "decay"
GATE, UP, DOWN = "gate", "up", "down"
ATTENTION, MLP = "attention", "mlp"
BLOCKS = (ATTENTION, MLP)
ATTENTION_ROLES = (QUERY, KEY, VALUE, OUTPUT)
MLP_ROLES = (GATE, UP, DOWN)
READERS: Mapping[str, tuple[str, ...]] = {
    ATTENTION: (QUERY, KEY, VALUE, OUTPUT_GATE, RENEWAL, DECAY),
    MLP: (GATE, UP),
}
WRITERS: Mapping[str, str] = {ATTENTION: OUTPUT, MLP: DOWN}

# Axes of the tensors outside the layers, and of those that choose experts.
VOCAB, HIDDEN, POSITIONS, TYPES, LABEL_OUTPUTS, HEAD_UNITS = (
    "vocab",
    "hidden",
    "positions",
    "types",
    "label_outputs",
    "head_units",
)
EXPERTS, ONE = "experts", "one"
# Routers of sigmoid scores add it to the sum that they divide by.
LEAST_SUM = 1e-20
CAUSAL_LM, CLASSIFICATION, BASE = "causal-lm", "classification", "base"
# The mean of all states of a text, in `TaskHead.pooling`.
MEAN = "mean"
# The values of a config's `layer_types`.
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
LINEAR_ATTENTION = "linear_attention"

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Dense:
    """A layer of units on top of the stack: `outer(norm(activation(inner(x))))`, like an MLP.

    In an entry of the table `activation` may be the field of the config that names it.
    """

    inner: str
    outer: str
    activation: str
    norm: str | None = None


@dataclass(frozen=True)
class TaskHead:
    """The part on top of the stack for one task: transformers' class, its tensors, its units."""

    model_class: str
    tensors: Mapping[str, Axes] = field(default_factory=dict)
    dense: Dense | None = None
    # Which states are classified: `MEAN`, or the field of the config that says so. By default they
    # are those of an encoder's first token, or of a decoder's last.
    pooling: str | None = None


@dataclass(frozen=True)
class Family:
    """Where a family keeps its tensors, and how its forward and its config differ from others'."""

    name: str
    config_class: str
    tasks: Mapping[str, TaskHead]

    # Tensor names. `layer` has a place for the number; `linears`, `blocks`, `norms`, `post_norms`
    # and `head_norms` are names inside a layer. Roles with the same module are fused in it, in the
    # order given. `outside` has the axes of the tensors that are in no layer.
    prefix: str
    layer: str
    linears: Mapping[str, str]
    # For each role whether its linear has a bias: always, never, or as this field of the config
    # says.
    biases: Mapping[str, bool | str]
    blocks: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, str]
    outside: Mapping[str, Axes]
    embedding: str
    final_norm: str | None = None
    head: str = "lm_head"
    embedding_norm: str | None = None
    position_table: str | None = None
    post_norms: Mapping[str, str] = field(default_factory=dict)
    head_norms: tuple[str, ...] = ()
    # Whether there are any: always, or as this field of the config says.
    has_head_norms: bool | str = True
    # Each of these norms spans all heads of query or key, not single ones.
    has_joint_head_norms: bool = False
    # A tensor of a layer with a logit for each head, which takes a share of its attention and adds
    # no value.
    sinks: str | None = None
    # The values of each head are normalized too, without a weight.
    has_value_norm: bool = False
    # A number of each layer that the stream is multiplied by after it: its name inside the layer.
    layer_scale: str | None = None
    # Layers read vectors of their own, if the config has a width of these.
    layer_inputs: LayerInputs | None = None
    # Tensors outside the layers that are there if this field of the config says so.
    optional: Mapping[str, str] = field(default_factory=dict)
    # Some or all layers have experts instead of an MLP.
    mixture: Mixture | None = None
    # Some layers carry a state instead of attending; which, a model's config says. It is here since
    # names depend on it; whoever needs no names asks `LayerShape.is_recurrent`.
    recurrence: Recurrence | None = None
    recurrent_layers: frozenset[int] = frozenset()
    # Endings of tensor names in old checkpoints, and the endings that they have now.
    renames: Mapping[str, str] = field(default_factory=dict)
    ignored_suffixes: tuple[str, ...] = ()

    # The forward. `residual` says where the norms are: before each block, also after it
    # ("sandwich"), only after it ("after": then `norms` is empty), or on the sum ("post": then
    # `norms` are those on the sum).
    residual: Literal["pre", "sandwich", "after", "post"] = "pre"
    norm: Literal["rms", "layer"] = "rms"
    # Whether norms have a bias: always, never, or as this field of the config says.
    norm_biases: bool | str = False
    # The first block has a norm of its own; without one it reads the norm of the embeddings.
    has_first_norm: bool = True
    # Added to every RMSNorm weight: Gemma stores w and multiplies by 1 + w.
    norm_offset: float = 0.0
    scales_embeddings: bool = False
    # The config has factors for embeddings, scores, what blocks add to the stream, and logits.
    has_multipliers: bool = False
    overflows_in_fp16: bool = False
    windows: Literal[
        "never", "always", "switched", "alternating", "typed", "spaced", "full_last"
    ] = "never"
    has_kv_heads: bool = True
    # Layers without a window have heads of a width of their own, with `attention_k_eq_v` a number
    # of KV heads of their own, and their keys before the norm are their values too.
    has_heads_by_type: bool = False
    # The last layers, as many as the config says, read the keys and values of an earlier one.
    shares_keys: bool = False
    # Weights are stored as (in, out).
    is_transposed: bool = False
    # The rows of fused roles alternate by head: those of the first head's query, key and value,
    # then the next head's. All of them have the same number of heads. In recurrent layers they do
    # so as `recurrence` says.
    alternates_by_head: bool = False
    # The first position is the one after the padding id.
    has_padded_positions: bool = False
    # The config's `partial_rotary_factor` counts.
    has_partial_rotation: bool = False
    # Some layers do not rotate: `no_rope_layers` says which, else every so many-th. Where the
    # config does not name the layers with a window, it is those.
    has_unrotated_layers: bool = False
    # Layers with a window and layers without have their own rope settings.
    has_rope_by_type: bool = False
    # Where only some types of rope exist: old names of those, and the names that they have now.
    rope_types: Mapping[str, str] = field(default_factory=dict)

    # The config: its own names for our fields, other names that its class maps to those, what the
    # class fixes instead of reading it, and the fields that must be off.
    keys: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    # Without a stated width a head is hidden size / heads wide.
    has_stated_head_width: bool = True
    # transformers requires the hidden size to be a multiple of the head count in any case.
    divides_hidden_size: bool = True
    # transformers requires the padding id to be one of the vocabulary, or to count from its end.
    has_padding_row: bool = True

    @cached_property
    def fields(self) -> Fields:
        """The keys of a config that transformers reads for this family, by its own names."""
        return {**EXTRA_KEYS[self.config_class], **CONFIG_CLASSES[self.config_class]}

    def synonyms(self, key: str) -> tuple[str, ...]:
        """Return the other names under which transformers reads one of the config's own keys."""
        pairs = self.aliases.items()
        return tuple(a if b == key else b for a, b in pairs if key in (a, b))

    @property
    def is_encoder(self) -> bool:
        """Say whether every token attends to all others, so that no model of it decodes."""
        return CAUSAL_LM not in self.tasks

    @property
    def is_gated(self) -> bool:
        return GATE in self.linears

    @property
    def is_rotary(self) -> bool:
        return self.position_table is None

    @property
    def default_task(self) -> str:
        """The task of a config that does not name one of the family's classes."""
        return CAUSAL_LM if CAUSAL_LM in self.tasks else BASE

    def scale_name(self, layer: int) -> str | None:
        """Return the tensor that the stream is multiplied by after a layer, if there is one."""
        return None if self.layer_scale is None else f"{self.layer_name(layer)}.{self.layer_scale}"

    def layer_name(self, layer: int) -> str:
        return self.layer.format(layer)

    def linears_of(self, layer: int) -> Mapping[str, str]:
        """Return the module names of a layer's linears by role, inside the layer."""
        if layer not in self.recurrent_layers:
            return self.linears
        assert self.recurrence is not None, "only such a family has recurrent layers"
        of_mlp = {role: name for role, name in self.linears.items() if role in MLP_ROLES}
        return {**self.recurrence.linears, **of_mlp}

    def linear(self, layer: int, role: str) -> str:
        """Return the module name of a role's linear, such as `model.layers.3.mlp.down_proj`."""
        return f"{self.layer_name(layer)}.{self.linears_of(layer)[role]}"

    def block_modules(self, layer: int, block: str) -> tuple[str, ...]:
        """Return the module names of what zeros replace when a block of a layer is removed."""
        own = self.blocks[block]
        if block == ATTENTION and layer in self.recurrent_layers:
            assert self.recurrence is not None, "only such a family has recurrent layers"
            own = (self.recurrence.block,)
        return tuple(f"{self.layer_name(layer)}.{name}" for name in own)

    def alternates(self, layer: int) -> bool:
        """Say whether the rows of a layer's fused roles alternate by head, or by key head."""
        if layer not in self.recurrent_layers:
            return self.alternates_by_head
        return self.recurrence is not None and self.recurrence.alternates_by_key_head

    def expert_linear(self, layer: int, expert: int | None, role: str) -> str:
        """Return the module name of an expert's linear; None is the expert that all tokens use."""
        assert self.mixture is not None, "only such a family has experts"
        if expert is not None:
            own = f"{self.mixture.expert.format(expert)}.{self.mixture.linears[role]}"
        else:
            own = f"{self.mixture.shared}.{self.mixture.linears[role]}"
        return f"{self.layer_name(layer)}.{own}"

    def router_name(self, layer: int) -> str:
        """Return the module name of the linear that chooses a layer's experts."""
        assert self.mixture is not None, "only such a family has experts"
        return f"{self.layer_name(layer)}.{self.mixture.router}"

    def norm_name(self, layer: int, block: str) -> str:
        return f"{self.layer_name(layer)}.{self.norms[block]}"

    def has_norm(self, layer: int, block: str) -> bool:
        """Say whether a block has a norm of its own before it, or on its sum."""
        is_first = (layer, block) == (0, ATTENTION)
        return block in self.norms and (self.has_first_norm or not is_first)

    def block_norms(self, layer: int, block: str) -> list[str]:
        """Return the module names of a block's norms over the residual stream."""
        own = [self.norms[block]] if self.has_norm(layer, block) else []
        after = [self.post_norms[block]] if block in self.post_norms else []
        branch = self.branch(layer) if block == MLP else None
        names = [f"{self.layer_name(layer)}.{name}" for name in (*own, *after)]
        return names if branch is None else [*names, *branch.norms]

    def branch(self, layer: int) -> Branch | None:
        """Return the names of what the experts of a layer have beside its MLP, if they are."""
        branch = None if self.mixture is None else self.mixture.branch
        return None if branch is None else branch.within(self.layer_name(layer))

    def experts_name(self, layer: int) -> str:
        """Return the module name of the experts that a layer's router chooses among."""
        assert self.mixture is not None, "only such a family has experts"
        return f"{self.layer_name(layer)}.{self.mixture.expert.removesuffix('.{}')}"

    def fused_roles(self, layer: int, role: str) -> tuple[str, ...]:
        """Return the roles whose rows share one module with `role`, in the order of their rows."""
        linears = self.linears_of(layer)
        return tuple(other for other in linears if linears[other] == linears[role])
