"""The text part of a model of text and images: its config.json in that of the whole.

What the whole's class takes from its own level counts there: whether the head is tied, and the ids
that begin and end a text. All else is in `text_config`, which means what its own class makes of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.config_field import TIED_KEY
from sgate_serve.architecture.config_kinds import TOKEN_IDS
from sgate_serve.architecture.config_schema import STEERING
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.architecture.sgate_config import PER_LAYER
from sgate_serve.architecture.wholes import WHOLES, Whole
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import FLAG, OBJECT, TEXT, TEXTS, check_fields

TEXT_CONFIG = "text_config"
# Ids that generation takes from the whole's own level if they are there.
OUTER_IDS = ("bos_token_id", "eos_token_id")
# What is said once for all parts: how the folder was written and stored.
OF_FOLDER = ("transformers_version", "quantization_config")
FIELDS = {
    TEXT_CONFIG: OBJECT,
    TIED_KEY: FLAG,
    "architectures": TEXTS,
    **dict.fromkeys(OUTER_IDS, TOKEN_IDS),
}
# Keys with which transformers builds another model of the whole, unless they have these values.
OUTER_STEERING: Mapping[str, tuple[Any, ...]] = {
    **{key: values for key, values in STEERING.items() if key != TEXT_CONFIG},
    PER_LAYER: (None,),
}


@dataclass(frozen=True)
class TextPart:
    """The config of a model's text, where errors place its fields, and the whole that it is of."""

    config: Mapping[str, Any]
    source: str
    whole: Whole | None = None


def text_part(config: Mapping[str, Any], source: str) -> TextPart:
    """Return the text part of a whole; a model of text alone is its own.

    Raises CheckpointError, naming `source` and the field, for a config that means no whole.
    """
    model_type = config.get("model_type")
    whole = WHOLES.get(model_type) if isinstance(model_type, str) else None
    if whole is None:
        return TextPart(config, source)
    family = FAMILIES[whole.family]
    check_fields(config, FIELDS, source, CheckpointError)
    _check_level(config, whole, source)
    text = config.get(TEXT_CONFIG)
    _check_text(text, whole, source)
    kept = (key for key in (*OUTER_IDS, *OF_FOLDER) if config.get(key) is not None)
    part = {
        **(text or {}),
        **{key: config[key] for key in kept},
        "model_type": whole.family,
        "architectures": [family.tasks[CAUSAL_LM].model_class],
        TIED_KEY: config.get(TIED_KEY, whole.ties_head),
    }
    return TextPart(part, f"{source}: {TEXT_CONFIG}", whole)


def _check_level(config: Mapping[str, Any], whole: Whole, source: str) -> None:
    """Refuse another class than the whole's, and keys that change what it builds."""
    name = next(iter(config.get("architectures") or ()), whole.model_class)
    if name != whole.model_class:
        raise CheckpointError(
            f"{source}: architecture {name:.80} of a {whole.model_type} is not supported "
            f"(supported: {whole.model_class}); load it in transformers as this one and save it "
            "again"
        )
    if TIED_KEY in config and config[TIED_KEY] is None:
        raise CheckpointError(
            f"{source}: {TIED_KEY} must be {FLAG.words}, found null: give it a value, or remove "
            "the line for the default of its class"
        )
    for key, values in OUTER_STEERING.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"{source}: {key} {brief(config[key])} is not supported in a {whole.model_type}; "
                "convert a checkpoint without it"
            )


def _check_text(text: Mapping[str, Any] | None, whole: Whole, source: str) -> None:
    if text is None:
        raise CheckpointError(
            f"{source}: {TEXT_CONFIG} is missing, and without it nothing says what the text part "
            "is; download or copy config.json again"
        )
    where = f"{source}: {TEXT_CONFIG}"
    check_fields(text, {"model_type": TEXT}, where, CheckpointError)
    if text.get("model_type") not in (None, whole.family):
        raise CheckpointError(
            f"{where}: model_type {brief(text['model_type'])} is not supported in such a model; "
            f"expected {whole.family}"
        )
    for key in whole.ignored:
        if text.get(key) is not None:
            raise CheckpointError(
                f"{where}: {key} {brief(text[key])} is not supported: transformers' "
                f"{whole.model_class} ignores it, and its class of the text alone does not, so "
                "which model is meant is unknown; remove it"
            )
