"""One field of a config class, and the fields that many classes have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sgate_serve.architecture.config_kinds import (
    ACTIVATION,
    DECIMAL,
    DTYPE,
    FRACTION,
    INTEGER,
    LABEL_IDS,
    LABEL_NAMES,
    LAYERS,
    PROBLEM,
    RATE,
    TOKEN_IDS,
    TRUE,
)
from sgate_serve.json_fields import FLAG, OBJECT, SIZE, TEXT, TEXTS, WHOLE, Kind


@dataclass(frozen=True)
class ConfigField:
    """One field of a config: its values, what its absence means, and whether it may be null."""

    kind: Kind
    default: Any = None
    is_nullable: bool = False


Fields = Mapping[str, ConfigField]


def nullable(kind: Kind, default: Any = None) -> ConfigField:
    return ConfigField(kind, default, is_nullable=True)


def changed(fields: Fields, **defaults: Any) -> dict[str, ConfigField]:
    """Return fields with other defaults."""
    return {**fields, **{key: replace(fields[key], default=new) for key, new in defaults.items()}}


def without(fields: Fields, name: str) -> dict[str, ConfigField]:
    return {key: field for key, field in fields.items() if key != name}


TIED_KEY = "tie_word_embeddings"
EVERY: Fields = {
    "transformers_version": nullable(TEXT),
    "architectures": nullable(TEXTS),
    "output_hidden_states": nullable(FLAG, False),
    # The models of transformers use their own layers' outputs by name.
    "return_dict": ConfigField(TRUE, True),
    "dtype": nullable(DTYPE),
    "chunk_size_feed_forward": ConfigField(WHOLE, 0),
    "is_encoder_decoder": ConfigField(FLAG, False),
    "id2label": nullable(LABEL_NAMES),
    "label2id": nullable(LABEL_IDS),
    "problem_type": nullable(PROBLEM),
    "vocab_size": ConfigField(SIZE),
    "initializer_range": ConfigField(FRACTION, 0.02),
    "pad_token_id": nullable(INTEGER),
    "bos_token_id": nullable(INTEGER),
    "eos_token_id": nullable(TOKEN_IDS),
    TIED_KEY: ConfigField(FLAG, False),
}
DECODER: Fields = {
    **EVERY,
    "hidden_size": ConfigField(SIZE, 4096),
    "intermediate_size": ConfigField(WHOLE),
    "num_hidden_layers": ConfigField(LAYERS, 32),
    "num_attention_heads": ConfigField(WHOLE, 32),
    "num_key_value_heads": ConfigField(WHOLE),
    "hidden_act": ConfigField(ACTIVATION, "silu"),
    "max_position_embeddings": ConfigField(SIZE),
    "rms_norm_eps": ConfigField(DECIMAL, 1e-6),
    "use_cache": ConfigField(FLAG, True),
    "rope_parameters": nullable(OBJECT),
    "attention_dropout": ConfigField(RATE, 0.0),
}
