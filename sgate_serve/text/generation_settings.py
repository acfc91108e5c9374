"""Defaults of generation in a model folder that our server does not apply, said once at its start.

`generate` of transformers and vLLM's server take them where a request is silent. Ours follows the
OpenAI API, whose defaults do not depend on the model; it reads `eos_token_id` only.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.json_fields import read_json

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation_config.json"
# Fields that change which tokens are generated, and the values with which they do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty"), (1, None)),
    **dict.fromkeys(("encoder_repetition_penalty", "length_penalty", "num_beams"), (1, None)),
    "top_k": (0, -1, None),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"), (0, None)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0, None)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), (None,)),
    **dict.fromkeys(("stop_strings", "max_new_tokens", "guidance_scale"), (None,)),
}


def unapplied_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's generation_config.json that would change what it writes."""
    path = folder / GENERATION_FILE
    stored = read_json(path) if path.exists() else {}
    return {
        name: stored[name]
        for name, neutral in NEUTRAL.items()
        if name in stored and stored[name] not in neutral
    }


def warn_unapplied(folder: Path) -> None:
    """Name those settings, if there are any."""
    found = unapplied_settings(folder)
    if found:
        logger.warning(
            "%s: %s not applied; a request that leaves them out gets the API's defaults",
            folder / GENERATION_FILE,
            ", ".join(f"{name} {value}" for name, value in found.items()),
        )
