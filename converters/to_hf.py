"""Write the deployable folder: config, safetensors, plan, and the files a tokenizer needs.

The format is `docs/format.md`. A uniform result is written as the stock model type and needs none
of us to load; anything else as `model_type: sgate`.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from converters.masked import MaskedCheckpoint
from converters.rewrite import rewritten_tensors, tensor_headers
from sgate_serve.checkpoint import Array
from sgate_serve.folder import FolderWriter
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.spec import (
    SGATE_FORMAT_VERSION,
    SGATE_MODEL_TYPE,
    LayerShape,
    ModelSpec,
    is_stock_shape,
)

SHARD_BYTES = 4 * 2**30
TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


def write_hf(writer: FolderWriter, masked: MaskedCheckpoint, plan: Plan) -> None:
    """Write everything of the HF layout into `writer`; the caller commits."""
    plan.check(masked.spec)
    headers = tensor_headers(masked, plan)
    writer.write_json("config.json", hf_config(masked, plan))
    plan.write(writer.path(PLAN_FILE))
    copy_companions(masked.base.folder, writer)
    arrays: Iterator[Array] = rewritten_tensors(masked, plan)
    shown = tqdm(arrays, "writing", len(headers), unit="tensor", disable=None)
    writer.write_weights(headers, shown, SHARD_BYTES)


def hf_config(masked: MaskedCheckpoint, plan: Plan) -> dict[str, Any]:
    """Derive `config.json` from the plan and the base's config; top-level sizes are the maximum."""
    config, spec = stock_config(masked.base.config), plan.spec(masked.spec)
    config |= _sizes(_largest(spec.layers, masked.spec.layers))
    config["dtype"] = TORCH_DTYPES[masked.dtype(f"{spec.family.embedding}.weight")]
    if is_stock_shape(spec):
        return config
    block = {
        "version": SGATE_FORMAT_VERSION,
        "family": spec.family.name,
        "base_model_type": config["model_type"],
        "extra_biases": list(plan.extra_biases),
    }
    config["model_type"] = SGATE_MODEL_TYPE
    config["architectures"] = [f"SGate{name}" for name in config.get("architectures") or ()]
    config["per_layer_config"] = dict(_per_layer(spec, plan, config))
    config["sgate"] = block
    return config


def stock_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's config as its stock family spells it; the base may be pruned already."""
    left_out = ("dtype", "torch_dtype", "per_layer_config", "sgate")
    config = {key: value for key, value in base.items() if key not in left_out}
    if base["model_type"] == SGATE_MODEL_TYPE:
        config["model_type"] = base["sgate"]["base_model_type"]
        names = base.get("architectures") or ()
        config["architectures"] = [name.removeprefix("SGate") for name in names]
    return config


def copy_companions(source: Path, writer: FolderWriter) -> None:
    """Copy tokenizer, chat template and generation settings as they are."""
    for name in COMPANION_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, writer.path(name))


def _per_layer(
    spec: ModelSpec, plan: Plan, top: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what differs from the top level, under zero-padded layer numbers."""
    digits = len(str(len(spec.layers) - 1))
    for layer, shape in zip(plan.layers, spec.layers, strict=True):
        sizes = {key: value for key, value in _sizes(shape).items() if value not in (top[key], 0)}
        skip = {"skip": list(layer.skipped_blocks)} if layer.skipped_blocks else {}
        entry = sizes | skip
        if entry:
            yield str(layer.index).zfill(digits), entry


def _sizes(shape: LayerShape) -> dict[str, int]:
    return {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp_units,
    }


def _largest(layers: tuple[LayerShape, ...], dense: tuple[LayerShape, ...]) -> LayerShape:
    """Return the maximum of each size over the layers; engines size their scratch from it.

    A block that no layer has keeps its dense size: stock configs refuse zero heads.
    """

    def largest(name: str) -> int:
        kept: int = max(getattr(layer, name) for layer in layers)
        return kept or max(getattr(layer, name) for layer in dense)

    return LayerShape(**{field.name: largest(field.name) for field in fields(LayerShape)})
