"""Fields of any config.json, by whichever of their names a family uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgate_serve.json_fields import is_whole

NUM_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
NUM_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
)
EXPERT_UNITS = ("moe_intermediate_size", "expert_ffn_hidden_size")
VOCAB_SIZE = ("vocab_size",)
PREDICTED = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
# Fields of a larger model that its text part may have too, with another value.
OF_WHOLE = ("model_type", "architectures", "tie_word_embeddings")
LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


@dataclass(frozen=True)
class AnyConfig:
    """The fields of a config.json that describe its language model."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "AnyConfig":
        """Read the fields of a model of texts, or of the text part of a larger model."""
        text = stored.get("text_config")
        if not isinstance(text, Mapping):
            return cls(stored)
        return cls({**stored, **text, **{key: stored[key] for key in OF_WHOLE if key in stored}})

    def number(self, names: Sequence[str]) -> tuple[str, int] | None:
        """Return the first of `names` that is a whole number, and its value."""
        for name in names:
            if is_whole(self.values.get(name)):
                return name, int(self.values[name])
        return None

    @property
    def num_layers(self) -> int | None:
        found = self.number(NUM_LAYERS)
        return None if found is None else found[1]

    @property
    def num_predicted(self) -> int:
        """Layers after the last that predict further tokens; files may lack them."""
        found = self.number(PREDICTED)
        return 0 if found is None else found[1]

    @property
    def is_language_model(self) -> bool:
        names = self.values.get("architectures")
        named = names if isinstance(names, list) else [names]
        return any(str(name).endswith(LANGUAGE_MODELS) for name in named)

    @property
    def blocks(self) -> Sequence[Any]:
        """The `block_configs` of NVIDIA's Puzzle, one for each layer; empty without them."""
        found = self.values.get("block_configs")
        return found if isinstance(found, list) else []
