"""`fix_mistral_regex`: the words that transformers corrects for Mistral's tokenizers."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from sgate_serve.text.tokenizer_class import base_model_type

# The correction is for large vocabularies, saved before transformers 5, of these model types.
MIN_TOKENS = 100_000
MODEL_TYPES = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def has_fixed_words(
    config: Mapping[str, Any], settings: Mapping[str, Any], tokenizer: Tokenizer
) -> bool:
    """Say whether the setting is on and transformers would heed it for this model."""
    if not settings.get("fix_mistral_regex") or tokenizer.pre_tokenizer is None:
        return False
    version, model_type = config.get("transformers_version"), base_model_type(config)
    if tokenizer.get_vocab_size() <= MIN_TOKENS:
        return False
    if not isinstance(version, str) or not version:
        return bool(config)
    major = version.partition(".")[0]
    return major.isdigit() and int(major) < 5 and model_type in (None, *MODEL_TYPES)


def split_into_mistrals_words(tokenizer: Tokenizer) -> None:
    """Put the corrected words in place of the first stage of the pre-tokenizer, or before it."""
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    stage = tokenizer.pre_tokenizer
    if isinstance(stage, pre_tokenizers.Sequence):
        tokenizer.pre_tokenizer[0] = words
        return
    if isinstance(stage, pre_tokenizers.Metaspace):
        stage = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, stage])
