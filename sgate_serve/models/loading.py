"""The transformers config and model of an opened checkpoint, whatever its layout.

The config is the checkpoint's own: transformers may be unable to load the one in the file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, Mxfp4Config, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.int8 import CONFIG_KEY, SCALE, dequantize, int8_weights
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, Array
from sgate_serve.models import AUTO_CLASSES
from sgate_serve.models.experts import stacked_place
from sgate_serve.models.names import name_in
from sgate_serve.models.progress import hidden_bars
from sgate_serve.models.refusals import refusals_named


def config_of(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Return the transformers config of a stock, an `sgate` or a foreign ragged folder.

    Raises CheckpointError naming the file if transformers refuses it.
    """
    with refusals_named(checkpoint.folder / CONFIG_FILE):
        return config_from({k: v for k, v in checkpoint.config.items() if k != CONFIG_KEY})


def config_from(config: dict[str, Any]) -> PreTrainedConfig:
    """Return the transformers config that the content of a config.json describes.

    With soft caps its attention is eager: sdpa, transformers' default, silently ignores them. So
    are experts, whose grouped products need widths of whole 16 bytes.
    """
    made: PreTrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    if getattr(made, "attn_logit_softcapping", None):
        made._attn_implementation = "eager"
    made._experts_implementation = "eager"
    return made


def load_model(checkpoint: Checkpoint) -> Any:
    """Load the model of a folder in fp32, whatever its task.

    The weights of an int8 folder are dequantized, and activations are not quantized: the outputs
    differ slightly from those of an engine that computes in int8.
    """
    tensors = float_tensors(checkpoint) if checkpoint.is_int8 else None
    is_uneven_stack = checkpoint.layout is not None and checkpoint.is_stacked
    is_apart = checkpoint.is_packed or is_uneven_stack or checkpoint.whole is not None
    if tensors is None and is_apart:
        # Experts in 4 bits and uneven ones are modules of their own, which have no tensors in such
        # files; and the class of the text alone would miss most names in the files of a whole, and
        # not stop.
        names = checkpoint.spec.tensor_shapes()
        tensors = ((name, checkpoint.read(name)) for name in names)
    if tensors is not None:
        return built_model(config_of(checkpoint), checkpoint.spec, tensors)
    with hidden_bars():
        return AUTO_CLASSES[checkpoint.spec.task].from_pretrained(
            checkpoint.folder, config=config_of(checkpoint), dtype=torch.float32
        )


def loaded_by(load: Callable[..., Any], checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a stock folder in fp32 as a function of transformers does alone.

    Experts in 4 bits become bf16 first, also on machines that have kernels for them.
    """
    if checkpoint.is_packed:
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    model = load(checkpoint.folder, dtype=torch.float32, **options).float()
    if checkpoint.is_packed:
        # By these, save_pretrained would look for the blocks again, and write no experts.
        del model._weight_conversions
    return model


def new_classifier(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> PreTrainedModel:
    """Build a classifier of the text part of a whole in fp32; its head is random.

    `settings` are fields of its config, such as the names of labels.
    """
    config = config_from({**checkpoint.config, **settings})
    model: PreTrainedModel = AUTO_CLASSES[CLASSIFICATION].from_config(config, dtype=torch.float32)
    spec = checkpoint.spec
    names = (name for name in spec.tensor_shapes() if name not in spec.head.tensors)
    fill(model, spec, ((name, checkpoint.read(name)) for name in names))
    return model


def float_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Array]]:
    """Yield the name and content of every tensor of an int8 folder's model, dequantized."""
    weights = int8_weights(checkpoint.spec)
    for name in checkpoint.spec.tensor_shapes():
        value = checkpoint.read(name)
        if name in weights:
            scale = checkpoint.read(f"{name.removesuffix('weight')}{SCALE}")
            value = dequantize(value, scale)
        yield name, value


def built_model(
    config: PreTrainedConfig, spec: ModelSpec, tensors: Iterable[tuple[str, Array]]
) -> PreTrainedModel:
    """Build the model of `config` in fp32 and fill it, one tensor at a time."""
    with no_init_weights():
        model: PreTrainedModel = AUTO_CLASSES[spec.task].from_config(config, dtype=torch.float32)
    model.tie_weights()
    fill(model, spec, tensors)
    return model


@torch.no_grad()
def fill(model: PreTrainedModel, spec: ModelSpec, tensors: Iterable[tuple[str, Array]]) -> None:
    """Copy tensors into a model, those of experts into the stacks of a stock class."""
    places = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, value in tensors:
        own = name_in(model, spec.family, name)
        place = places.get(own)
        if place is None:
            stack, select = stacked_place(own, spec.family)
            place = select(places[stack])
        # torch does not know ml_dtypes' types, and float64 holds every value.
        place.copy_(torch.from_numpy(value.astype(np.float64)))
