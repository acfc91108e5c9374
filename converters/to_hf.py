"""Write the deployable folder: config, safetensors, plan and tokenizer files.

The format is described in `docs/format.md`. If all layers are alike, the folder has the stock model
type and loads without this package; otherwise it has `model_type: sgate`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from tqdm import tqdm

from converters.masked import MaskedCheckpoint
from converters.quantize import stored_tensors
from sgate_serve.architecture.config import (
    SGATE_CLASS_PREFIX,
    SGATE_FORMAT_VERSION,
    SGATE_MODEL_TYPE,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec, is_stock_shape
from sgate_serve.checkpoint.companions import copy_companions
from sgate_serve.checkpoint.int8 import CONFIG_KEY, float_linears, int8_config
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.json_form import write_plan
from sgate_serve.plan.placement import pruned_spec

SHARD_BYTES = 4 * 2**30
TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_hf(
    writer: FolderWriter, masked: MaskedCheckpoint, plan: Plan, is_int8: bool = False
) -> None:
    """Write the whole HF layout into `writer`; the caller commits it."""
    plan.check(masked.spec)
    # Use the names of the base's own files: base models are saved without a prefix.
    written_name = masked.base.written_name
    headers, arrays = stored_tensors(masked, plan, is_int8)
    headers = [replace(header, name=written_name(header.name)) for header in headers]
    config = hf_config(masked, plan)
    if is_int8:
        config[CONFIG_KEY] = int8_config(map(written_name, float_linears(masked.spec)))
    writer.write_json("config.json", config)
    write_plan(plan, writer.path(PLAN_FILE))
    copy_companions(masked.base.folder, writer, masked.spec.task)
    shown = tqdm(arrays, "writing", len(headers), unit="tensor", disable=None)
    writer.write_weights(headers, shown, SHARD_BYTES)


def hf_config(masked: MaskedCheckpoint, plan: Plan) -> dict[str, Any]:
    """Derive `config.json` from the plan and the base's config.

    Each size at the top level is the maximum over the layers.
    """
    config, spec = stock_config(masked.base.config), pruned_spec(plan, masked.spec)
    family = spec.family
    config |= _sizes(_top_level(spec), spec, config)
    config |= {"tie_word_embeddings": spec.tied_head} if spec.tied_head else {}
    if not spec.tied_head and masked.base.spec.tied_head:
        config["tie_word_embeddings"] = False
    if spec.hidden_size != masked.spec.hidden_size:
        config[family.keys.get("hidden_size", "hidden_size")] = spec.hidden_size
    config["dtype"] = TORCH_DTYPES[masked.dtype(f"{family.embedding}.weight")]
    if is_stock_shape(spec):
        return config
    names = config.get("architectures") or ()
    block = sgate_block(spec, config["model_type"])
    config["model_type"] = SGATE_MODEL_TYPE
    config["architectures"] = [f"{SGATE_CLASS_PREFIX}{name}" for name in names]
    config["per_layer_config"] = dict(_per_layer(spec, plan, config))
    config["sgate"] = block
    return config


def sgate_block(spec: ModelSpec, base_model_type: str) -> dict[str, Any]:
    """Return the values that Hugging Face has no name for, if they differ from a stock model's."""
    block: dict[str, Any] = {
        "version": SGATE_FORMAT_VERSION,
        "family": spec.family.name,
        "base_model_type": base_model_type,
        "extra_biases": sorted(spec.extra_biases),
    }
    if spec.norm_size != spec.hidden_size:
        block["norm_size"] = spec.norm_size
    if spec.head_units != spec.hidden_size:
        block["head_units"] = spec.head_units
    if spec.lowered:
        block["lowered"] = {
            name: {k: v for k, v in vars(lowered).items() if v is not None}
            for name, lowered in spec.lowered.items()
        }
    return block


def stock_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's config as its stock family writes it; the base may itself be pruned."""
    left_out = ("dtype", "torch_dtype", "per_layer_config", "sgate")
    config = {key: value for key, value in base.items() if key not in left_out}
    if base["model_type"] == SGATE_MODEL_TYPE:
        config["model_type"] = base["sgate"]["base_model_type"]
        names = base.get("architectures") or ()
        config["architectures"] = [name.removeprefix(SGATE_CLASS_PREFIX) for name in names]
    return config


def _per_layer(
    spec: ModelSpec, plan: Plan, top: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the values that differ from the top level, under zero-padded layer numbers."""
    digits = len(str(len(spec.layers) - 1))
    for layer, shape in zip(plan.layers, spec.layers, strict=True):
        own = _sizes(shape, spec, top)
        sizes = {key: value for key, value in own.items() if value not in (top.get(key), 0)}
        skip = {"skip": list(layer.skipped_blocks)} if layer.skipped_blocks else {}
        entry = sizes | skip
        if entry:
            yield str(layer.index).zfill(digits), entry


def _sizes(shape: LayerShape, spec: ModelSpec, top: Mapping[str, Any]) -> dict[str, int]:
    """Return a layer's widths under the family's config keys.

    A width of 0 is left out where `top` has the key: stock configs reject zero heads.
    """
    family = spec.family
    sizes = {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp_units,
    }
    if not _states_head_width(spec):
        del sizes["head_dim"]
    if not family.has_kv_heads:
        del sizes["num_key_value_heads"]
    named = {family.keys.get(key, key): value for key, value in sizes.items()}
    return {key: value for key, value in named.items() if value or key not in top}


def _states_head_width(spec: ModelSpec) -> bool:
    """Say whether the config has a `head_dim`; it must unless that is hidden size / heads."""
    return spec.family.has_stated_head_width or spec.hidden_size != spec.norm_size


def _top_level(spec: ModelSpec) -> LayerShape:
    """Return the maximum of each size over the layers; engines size their buffers by it.

    Where the config states no `head_dim`, head counts keep their dense values, so that the width
    of a head remains hidden size / heads.
    """
    sizes = {
        f.name: max(getattr(layer, f.name) for layer in spec.layers) for f in fields(LayerShape)
    }
    top = LayerShape(**sizes)
    if _states_head_width(spec):
        return top
    heads = spec.hidden_size // top.head_dim
    ratio = max((layer.queries_per_kv for layer in spec.layers), default=1) or 1
    return replace(top, num_heads=heads, num_kv_heads=heads // ratio)
