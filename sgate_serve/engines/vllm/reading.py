"""Makes vLLM read a folder as transformers does, or refuses what it would read otherwise.

vLLM loads an index where a newer single file is there, and every safetensors file where no index
is. Not every version that is supported unties a head that is stored with its own values (0.32
does). It pools as the files of sentence-transformers say, but puts no prompt before texts. The
folder itself stays as it is.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import ATTENTION_ROLES, BASE
from sgate_serve.architecture.gated_units import PUBLISHED
from sgate_serve.architecture.rope import YARN, Rope
from sgate_serve.architecture.sgate_config import SGATE_CLASS_PREFIX, SGATE_MODEL_TYPE
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from sgate_serve.engines.vllm.device import has_gpu
from sgate_serve.errors import EngineError
from sgate_serve.text.pooling import Pooling
from sgate_serve.text.sentence_files import MODEL_FILE

# The settings that vLLM's attention with sinks needs; it reads one more.
YARN_FIELDS = frozenset(
    {
        *("rope_type", "rope_theta", "factor", "beta_fast", "beta_slow"),
        "original_max_position_embeddings",
    }
)
OVERRIDES_FLAG = "--hf-overrides"


def config_overrides(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the keys of config.json that vLLM must read differently, with their values.

    Raises EngineError if `arguments` override the config too, for a model of text and images, for
    other weights than those that transformers loads, for experts in 4 bits without a GPU, and for a
    default prompt.
    """
    model = Checkpoint.open(folder)
    _check_alone(model)
    _check_packed(model)
    _check_files(model)
    _check_prompt(model)
    _check_stock_class(model)
    if model.layout is not None:
        return {}
    stored = model.stored_config
    found = {key: value for key, value in model.config.items() if stored.get(key) != value}
    found |= _own_class(model)
    words = (word.partition("=")[0].replace("_", "-") for word in arguments)
    if found and OVERRIDES_FLAG in words:
        raise EngineError(
            f"{OVERRIDES_FLAG} would replace {json.dumps(found)}, which the weights of {folder} "
            "need; write that into its config.json"
        )
    return found


def _own_class(model: Checkpoint) -> dict[str, Any]:
    """Return the plugin's architecture for a stock folder that vLLM's class does not run here.

    On CPU, vLLM 0.32 computes recurrent layers in bfloat16 alone, in heads of 64 or 128 dimensions.
    """
    is_stock = model.config.get("model_type") != SGATE_MODEL_TYPE
    if not is_stock or not model.spec.has_recurrent_layers or has_gpu():
        return {}
    return {"architectures": [f"{SGATE_CLASS_PREFIX}{model.spec.head.model_class}"]}


def _check_packed(model: Checkpoint) -> None:
    """Raise EngineError for experts in 4 bits on CPU, where vLLM has no kernel for them."""
    if model.is_packed and not has_gpu():
        raise EngineError(
            f"{model.folder}: vLLM computes with experts in 4 bits on GPUs alone; give what `sgate "
            f"convert {model.folder} --out NEW` writes, or choose another engine"
        )


def _check_alone(model: Checkpoint) -> None:
    """Raise EngineError for the text part of a whole, of which vLLM would load all."""
    if model.whole is not None:
        raise EngineError(
            f"{model.folder} is a {model.whole.model_class}, and vLLM would load its other parts "
            f"too; write the text part alone with `sgate convert {model.folder} --out DIR`, and "
            "give DIR"
        )


def _check_prompt(model: Checkpoint) -> None:
    """Raise EngineError for an embedding model whose texts have a prompt in front."""
    prompt = Pooling.of(model.folder).prompt if model.spec.task == BASE else ""
    if prompt:
        raise EngineError(
            f"{model.folder / MODEL_FILE} has the default prompt {prompt!r}, which vLLM does not "
            "put before texts; serve it on the onnx engine, or remove default_prompt_name and have "
            "clients send the prompt"
        )


def _check_stock_class(model: Checkpoint) -> None:
    """Raise EngineError for a stock folder whose config vLLM's own class does not follow."""
    if model.config.get("model_type") == SGATE_MODEL_TYPE:
        return
    if (field := next(_unfollowed(model.spec), None)) is not None:
        raise EngineError(
            f"{model.folder / CONFIG_FILE}: vLLM's {model.spec.head.model_class} does not follow "
            f"{field}; serve the folder on the onnx engine"
        )


def _unfollowed(spec: ModelSpec) -> Iterator[str]:
    """Yield the fields of a config that are not what vLLM's class takes for granted.

    Units are clamped by fixed numbers, and attention with sinks has windows, biases and a type of
    rope of its own.
    """
    if spec.clamped_units not in (None, PUBLISHED):
        yield "swiglu_alpha and swiglu_limit"
    if spec.family.sinks is None:
        return
    if any((window is None) != bool(index % 2) for index, window in enumerate(spec.windows)):
        yield "layer_types, and has a window in every other layer from the first"
    if not spec.biased_roles.issuperset(ATTENTION_ROLES):
        yield "attention_bias false"
    if not all(_is_plain_yarn(rope) for rope in spec.ropes):
        yield "such rope_parameters, and has YaRN with both betas and nothing besides"


def _is_plain_yarn(rope: Rope | None) -> bool:
    return (
        rope is not None
        and rope.rope_type == YARN
        and YARN_FIELDS <= rope.settings.keys() <= YARN_FIELDS | {"truncate"}
    )


def _check_files(model: Checkpoint) -> None:
    """Raise EngineError for files of weights that vLLM would load instead or in addition."""
    read = {stored.file for info in model.tensors.values() for stored in info.in_files}
    index = model.folder / INDEX_FILE
    is_sharded = {file.name for file in read} != {SINGLE_FILE}
    strangers = {
        file
        for file in model.folder.glob("*.safetensors")
        if file not in read and (not is_sharded or file.name.startswith("consolidated"))
    }
    if index.exists() and not is_sharded:
        strangers.add(index)
    if strangers:
        raise EngineError(
            f"vLLM would read {min(strangers)}, which the model does not consist of; move it to "
            "another folder"
        )
