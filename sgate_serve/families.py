"""Model families as data: where each tensor of a layer lives.

A new family is a new entry of `FAMILIES`; no other module names one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
GATE, UP, DOWN = "gate", "up", "down"
ATTENTION, MLP = "attention", "mlp"

# act(0) = 0, so a unit whose gate row and bias are zero is silent. A whitelist: RULES 1.
ZERO_AT_ZERO = frozenset(
    {"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"}
    | {"relu", "relu2", "relu6", "tanh", "mish", "hardswish", "leaky_relu", "linear"}
)


@dataclass(frozen=True)
class Family:
    """Where a family keeps its tensors; names in `linears`, `blocks` and `norms` are per layer."""

    name: str
    layer: str
    linears: Mapping[str, str]
    blocks: Mapping[str, str]
    norms: Mapping[str, str]
    embedding: str
    final_norm: str
    head: str
    ignored_suffixes: tuple[str, ...] = ()

    def layer_name(self, layer: int) -> str:
        return self.layer.format(layer)

    def linear(self, layer: int, role: str) -> str:
        """Return the module name of a role's linear, such as `model.layers.3.mlp.down_proj`."""
        return f"{self.layer_name(layer)}.{self.linears[role]}"

    def norm(self, layer: int, block: str) -> str:
        return f"{self.layer_name(layer)}.{self.norms[block]}"


LLAMA = Family(
    name="llama",
    layer="model.layers.{}",
    linears={
        QUERY: "self_attn.q_proj",
        KEY: "self_attn.k_proj",
        VALUE: "self_attn.v_proj",
        OUTPUT: "self_attn.o_proj",
        GATE: "mlp.gate_proj",
        UP: "mlp.up_proj",
        DOWN: "mlp.down_proj",
    },
    blocks={ATTENTION: "self_attn", MLP: "mlp"},
    norms={ATTENTION: "input_layernorm", MLP: "post_attention_layernorm"},
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    ignored_suffixes=("rotary_emb.inv_freq",),
)

FAMILIES: Mapping[str, Family] = {LLAMA.name: LLAMA}

ATTENTION_ROLES = (QUERY, KEY, VALUE, OUTPUT)
MLP_ROLES = (GATE, UP, DOWN)
