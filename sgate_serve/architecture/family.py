"""What a model family is: the words of its parts, and the fields of one table entry.

Tensors are named as a model with a head has them (`model.layers.0…`, `bert.encoder.layer.0…`),
whatever the files of a folder say. The table itself is `sgate_serve.architecture.families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
GATE, UP, DOWN = "gate", "up", "down"
ATTENTION, MLP = "attention", "mlp"
BLOCKS = (ATTENTION, MLP)
ATTENTION_ROLES = (QUERY, KEY, VALUE, OUTPUT)
MLP_ROLES = (GATE, UP, DOWN)
READERS: Mapping[str, tuple[str, ...]] = {ATTENTION: (QUERY, KEY, VALUE), MLP: (GATE, UP)}
WRITERS: Mapping[str, str] = {ATTENTION: OUTPUT, MLP: DOWN}

# Axes of the tensors outside the layers.
VOCAB, HIDDEN, POSITIONS, TYPES, LABELS, HEAD_UNITS = (
    "vocab",
    "hidden",
    "positions",
    "types",
    "labels",
    "head_units",
)
CAUSAL_LM, CLASSIFICATION, BASE = "causal-lm", "classification", "base"

# act(0) = 0, so a unit whose row and bias are zero is silent. A whitelist: RULES 1.
ZERO_AT_ZERO = frozenset(
    {"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"}
    | {"relu", "relu2", "relu6", "tanh", "mish", "hardswish", "leaky_relu", "linear"}
)

# act(x) = 0 for every x ≤ 0, so a unit that is a constant below zero is silent too.
ZERO_BELOW_ZERO = frozenset({"relu", "relu2", "relu6"})

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Dense:
    """A layer of units on top of the stack: `outer(activation(inner(x)))`, an MLP of its own."""

    inner: str
    outer: str
    activation: str


@dataclass(frozen=True)
class Task:
    """What sits on the stack for one use: transformers' class, its tensors, its hidden units."""

    model_class: str
    tensors: Mapping[str, Axes] = field(default_factory=dict)
    dense: Dense | None = None


@dataclass(frozen=True)
class Family:
    """Where a family keeps its tensors and what its forward does differently.

    Names in `linears`, `blocks`, `norms`, `post_norms` and `head_norms` are inside a layer; roles
    of one module are fused in it, in the order given. `biases` says of each role whether its linear
    has one: always, never, or the config's switch of that name. `residual` is where norms stand:
    before each block, also after it ("sandwich"), or on the sum ("post", the norms then being those
    in `norms`). `keys` are the config's own names of our fields, `defaults` those of its class, and
    fields that are `refused` must be off. Transposed weights are (in, out); padded positions start
    behind the padding id; with partial rotation the config's factor says how much of a head
    rotates. A head's width is stated by the config, or hidden size / heads. `renames`
    are endings of tensor names in old checkpoints.
    """

    name: str
    config_class: str
    tasks: Mapping[str, Task]
    prefix: str
    layer: str
    linears: Mapping[str, str]
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
    residual: Literal["pre", "sandwich", "post"] = "pre"
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    windows: Literal["never", "always", "switched", "typed"] = "never"
    has_stated_head_width: bool = True
    has_kv_heads: bool = True
    is_transposed: bool = False
    has_padded_positions: bool = False
    has_partial_rotation: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    ignored_suffixes: tuple[str, ...] = ()

    @property
    def is_gated(self) -> bool:
        return GATE in self.linears

    @property
    def is_rotary(self) -> bool:
        return self.position_table is None

    @property
    def has_norm_bias(self) -> bool:
        return self.norm == "layer"

    def layer_name(self, layer: int) -> str:
        return self.layer.format(layer)

    def linear(self, layer: int, role: str) -> str:
        """Return the module name of a role's linear, such as `model.layers.3.mlp.down_proj`."""
        return f"{self.layer_name(layer)}.{self.linears[role]}"

    def norm_name(self, layer: int, block: str) -> str:
        return f"{self.layer_name(layer)}.{self.norms[block]}"

    def fused_roles(self, role: str) -> tuple[str, ...]:
        """Return the roles whose rows share one module with `role`, in the order of their rows."""
        return tuple(other for other in self.linears if self.linears[other] == self.linears[role])
