"""Model families as data: where each tensor of a layer lives.

A new family is a new entry of `FAMILIES`; no other module names one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

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
    """Where a family keeps its tensors and what sets it apart.

    Names in `linears`, `blocks`, `norms` and `head_norms` are inside a layer. `biases` says of each
    role whether its linear has one: always, never, or the config's switch of that name. `classes`
    are transformers' config, base model and causal LM. Sliding windows are on in no layer, in all
    that the config's `sliding_window` is set for, or where `use_sliding_window` puts them.
    """

    name: str
    classes: tuple[str, str, str]
    biases: Mapping[str, bool | str]
    layer: str
    linears: Mapping[str, str]
    blocks: Mapping[str, str]
    norms: Mapping[str, str]
    embedding: str
    final_norm: str
    head: str
    head_norms: tuple[str, ...] = ()
    default_head_dim: int | None = None
    windows: Literal["never", "always", "switched"] = "never"
    ignored_suffixes: tuple[str, ...] = ()

    def layer_name(self, layer: int) -> str:
        return self.layer.format(layer)

    def linear(self, layer: int, role: str) -> str:
        """Return the module name of a role's linear, such as `model.layers.3.mlp.down_proj`."""
        return f"{self.layer_name(layer)}.{self.linears[role]}"

    def norm(self, layer: int, block: str) -> str:
        return f"{self.layer_name(layer)}.{self.norms[block]}"


ATTENTION_ROLES = (QUERY, KEY, VALUE, OUTPUT)
MLP_ROLES = (GATE, UP, DOWN)

LLAMA = Family(
    name="llama",
    classes=("LlamaConfig", "LlamaModel", "LlamaForCausalLM"),
    biases={
        **dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
        **dict.fromkeys(MLP_ROLES, "mlp_bias"),
    },
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

MISTRAL = replace(
    LLAMA,
    name="mistral",
    classes=("MistralConfig", "MistralModel", "MistralForCausalLM"),
    biases={},
    windows="always",
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    classes=("Qwen2Config", "Qwen2Model", "Qwen2ForCausalLM"),
    biases=dict.fromkeys((QUERY, KEY, VALUE), True),
    windows="switched",
)

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    classes=("Qwen3Config", "Qwen3Model", "Qwen3ForCausalLM"),
    biases=dict.fromkeys(ATTENTION_ROLES, "attention_bias"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    default_head_dim=128,
    windows="switched",
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}
