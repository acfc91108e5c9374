"""The text part of a model of text and images as transformers itself takes it out of the whole.

The class of the whole reads the folder, by its own rules for the names of tensors. Its stack and
its head then become those of the class of the text alone.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from sgate_serve.architecture.config_field import TIED_KEY
from sgate_serve.architecture.text_part import OUTER_IDS
from sgate_serve.errors import CheckpointError

# Of what tokens hold the place of, by the names of the config's fields.
MEDIA = ("image", "video", "audio")
NUM_IDS = 32


def text_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the text in that of a whole; the config of a text model as it is.

    What a whole takes from its own level is set in the part.
    """
    text: PreTrainedConfig = config.get_text_config()
    if text is not config:
        setattr(text, TIED_KEY, getattr(config, TIED_KEY))
        for key in OUTER_IDS:
            if (own := getattr(config, key, None)) is not None:
                setattr(text, key, own)
    return text


def load_text_part(folder: Path, **options: Any) -> Any:
    """Load a whole with the class that its config names, and return its text part as a causal LM.

    `options` go to `from_pretrained`. Raises what transformers raises, and CheckpointError if the
    class of the text computes otherwise than that of the whole.
    """
    whole: Any = AutoModelForImageTextToText.from_pretrained(folder, **options)
    with torch.device("meta"):
        text: Any = AutoModelForCausalLM.from_config(text_config_of(whole.config))
    text.config.architectures = [type(text).__name__]
    setattr(text, text.base_model_prefix, whole.get_decoder())
    text.set_output_embeddings(whole.get_output_embeddings())
    _check_alike(whole.eval(), text.eval(), folder)
    return text


@torch.inference_mode()
def _check_alike(whole: Any, text: Any, folder: Path) -> None:
    """Compare both on the first ids that stand for no image or sound."""
    names = (f"{medium}_token_id" for medium in MEDIA)
    placeholders = {getattr(whole.config, name, None) for name in names}
    ids = [one for one in range(text.config.vocab_size) if one not in placeholders][:NUM_IDS]
    expected, found = (model(torch.tensor([ids])).logits for model in (whole, text))
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{folder}: the text part of a {type(whole).__name__} computes otherwise as a "
            f"{type(text).__name__}, by {(found - expected).abs().max():.2g}"
        )
