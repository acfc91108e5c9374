"""SentencePiece's BPE in llama.cpp: tokens merge by their scores, not by a list of merges."""

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sgate_serve.errors import CheckpointError
from sgate_serve.text.pre_tokenizers import PREFIX, SPACES

logger = logging.getLogger(__name__)


def check_merges(model: Mapping[str, Any], added: Collection[str], source: Path) -> None:
    """Raise CheckpointError unless scores of tokens can say what the merges say.

    Every pair of tokens that makes a token must be a merge, unless that is an `added` one, and
    merges into the same token must follow each other.
    """
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    known, made = set(merges), ["".join(pair) for pair in merges]
    changes = sum(1 for before, after in pairwise(made) if before != after)
    if made and changes + 1 != len(set(made)):
        problem = "merges into one token that are apart"
    elif any(pair not in known for text in vocab.keys() - added for pair in _splits(text, vocab)):
        problem = "a pair of tokens that makes a token and is no merge"
    else:
        return
    raise CheckpointError(
        f"{source} has {problem}, and llama.cpp merges by the scores of tokens; leave out gguf"
    )


def _splits(text: str, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    pairs = ((text[:at], text[at:]) for at in range(1, len(text)))
    return [(left, right) for left, right in pairs if left in vocab and right in vocab]


def scores_of(merges: Sequence[Sequence[str]], tokens: Sequence[str]) -> list[float]:
    """Return a score for each token, higher for one that is merged earlier."""
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault("".join(pair), len(ranks))
    return [-float(ranks.get(token, 0)) for token in tokens]


def prefix_space(serialized: Mapping[str, Any], source: Path) -> bool:
    """Say whether texts get a space in front; raise CheckpointError for other steps than spaces."""
    normalizer, stage = serialized.get("normalizer") or {}, serialized.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if stage.get("type") == "Metaspace" and not steps and not stage.get("split"):
        adds_space: bool = stage["prepend_scheme"] != "never"
        if adds_space:
            logger.info(
                "%s: llama.cpp, as SentencePiece, puts a space before a text that begins with one "
                "too, and before a text after a special token",
                source,
            )
        return adds_space
    if not stage and steps in ([PREFIX, SPACES], [SPACES]):
        return len(steps) == 2
    raise CheckpointError(
        f"{source}: llama.cpp is not known to have an equal of its normalizer and pre_tokenizer, "
        "which do more than to mark spaces; leave out gguf"
    )
