"""Small random models of text and images, built from the real config classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from sgate_serve.architecture.wholes import WHOLES
from tests.families.random_weights import randomize
from tests.families.zoo import LENGTH, ZOO
from tests.families.zoo_configs import VOCABULARY

# The last ids are placeholders of images, videos and sound, which are no text.
PLACEHOLDERS = 4
_SIZES = {"hidden_size": 16, "intermediate_size": 16}
_HEADS = {"num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {"image_size": 28, "patch_size": 14}
_SOUND = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 16,
}
OUTER: dict[str, Mapping[str, Any]] = {
    "qwen3_5": {
        "vision_config": {
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
            **_SIZES,
        },
        "image_token_id": VOCABULARY - 1,
        "video_token_id": VOCABULARY - 2,
    },
    "gemma3": {
        "vision_config": {**_SIZES, **_HEADS, **_PATCHES},
        "mm_tokens_per_image": 4,
        "image_token_index": VOCABULARY - 1,
    },
    "gemma4": {
        "vision_config": {**_SIZES, **_HEADS, "num_key_value_heads": 2, "head_dim": 8},
        "audio_config": _SOUND,
        "image_token_id": VOCABULARY - 1,
        "video_token_id": VOCABULARY - 2,
        "audio_token_id": VOCABULARY - 3,
    },
    "mistral3": {
        "vision_config": {"model_type": "pixtral", **_SIZES, **_HEADS, **_PATCHES, "head_dim": 8},
        "image_token_index": VOCABULARY - 1,
    },
}
OUTER |= {"qwen3_5_moe": OUTER["qwen3_5"]}
# What published configs say of their text besides what those of text models do.
INNER: dict[str, Mapping[str, Any]] = {
    "qwen3_5": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
        "mtp_num_hidden_layers": 1,
        "attn_output_gate": True,
        "mlp_only_layers": [],
    },
    # The class of the whole ignores it.
    "gemma3": {"final_logit_softcapping": None},
    "gemma4": {"use_bidirectional_attention": "vision"},
    "mistral3": {"model_type": "mistral"},
}
INNER |= {"qwen3_5_moe": INNER["qwen3_5"]}


def whole_config(model_type: str, variant: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a config.json; the variant is that of the text's family in the zoo."""
    text = {**ZOO[WHOLES[model_type].family][variant].config, **INNER.get(model_type, {})}
    tied = {"tie_word_embeddings": text["tie_word_embeddings"]}
    return {"model_type": model_type, "text_config": text, **OUTER[model_type], **tied, **changes}


def build_whole(model_type: str, variant: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(variant)
    values = whole_config(model_type, variant, **changes)
    config = CONFIG_MAPPING[model_type](**values)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval()
    randomize(model)
    return model


def text_ids() -> NDArray[np.int64]:
    """Return ids of a text: longer than every window, without padding and placeholders."""
    return np.random.default_rng(0).integers(1, VOCABULARY - PLACEHOLDERS, 2 * LENGTH)


def logits_of(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)[None]).logits[0].float().numpy())


def saved(model: PreTrainedModel, folder: Path, *, has_old_names: bool) -> Path:
    """Save a whole, with the names of its class or with those of published files."""
    model.save_pretrained(folder, save_original_format=has_old_names)
    return folder
