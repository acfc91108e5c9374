"""Write the deployable folder: config, safetensors, plan and tokenizer files.

The format is described in `docs/format.md`. If all layers are alike, the folder has the stock model
type and loads without this package; otherwise it has `model_type: sgate`.
"""

from dataclasses import replace
from typing import Any

from converters.masked import MaskedCheckpoint
from converters.quantize import stored_tensors
from converters.second_reading import check_with_transformers
from converters.stacking import is_stacked, stacked_arrays, stacked_headers
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.sgate_config import (
    GLOBAL_HEAD_DIM,
    GLOBAL_KV_HEADS,
    LayerSizes,
    SgateBlock,
    narrower_windows,
    sgate_config,
    stock_config,
    uneven_experts,
    unstated_shared,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.stock_shape import heads_by_type, is_stock_shape, stock_units
from sgate_serve.checkpoint.companions import copy_companions
from sgate_serve.checkpoint.fitting import FURTHER_LAYERS
from sgate_serve.checkpoint.int8 import CONFIG_KEY, float_linears, int8_config
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.checkpoint.writer import FolderWriter
from sgate_serve.plan import PLAN_FILE, Plan
from sgate_serve.plan.json_form import write_plan
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.progress import activity, counted

SHARD_BYTES = 4 * 2**30
# The dtype is written anew, and no remote code goes with the weights.
LEFT_OUT = frozenset({"dtype", "torch_dtype", "auto_map"})
ROUTER_LOSS = "output_router_logits"
TORCH_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_hf(
    writer: FolderWriter,
    masked: MaskedCheckpoint,
    plan: Plan,
    is_int8: bool = False,
    *,
    is_checked: bool = False,
) -> None:
    """Write the whole HF layout into `writer`; the caller commits it.

    The config comes first and is read again, by transformers as well where it is installed, unless
    it has checked this one: weights are not written for a folder that nothing loads.
    """
    plan.check(masked.spec)
    # Use the names of the base's own files: base models are saved without a prefix.
    written_name = masked.base.written_name
    headers, arrays = stored_tensors(masked, plan, is_int8)
    if is_stacked(pruned_spec(plan, masked.spec)):
        arrays = stacked_arrays(headers, arrays, masked.spec.family)
        headers = stacked_headers(headers, masked.spec.family)
    headers = [replace(header, name=written_name(header.name)) for header in headers]
    config = written_config(masked, plan, is_int8)
    written = ModelSpec.from_config(config, f"{writer.folder}/config.json")
    # A config cannot say that the pooler is missing.
    planned = replace(pruned_spec(plan, masked.spec), lacks_pooler=False)
    assert written == planned, "the written config is read otherwise"
    writer.write_json(CONFIG_FILE, config)
    if not is_checked:
        check_with_transformers(writer.staging, writer.folder / CONFIG_FILE)
    write_plan(plan, writer.path(PLAN_FILE))
    copy_companions(masked.base.folder, writer, masked.spec.task, config)
    with activity("writing", is_brief=True):
        writer.write_weights(headers, counted(arrays, "tensor", len(headers)), SHARD_BYTES)


def written_config(masked: MaskedCheckpoint, plan: Plan, is_int8: bool) -> dict[str, Any]:
    """Return the content of `config.json`, which names the float linears of an int8 folder."""
    config = hf_config(masked, plan)
    if is_int8:
        linears = map(masked.base.written_name, float_linears(masked.spec))
        config[CONFIG_KEY] = int8_config(linears)
    return config


def hf_config(masked: MaskedCheckpoint, plan: Plan) -> dict[str, Any]:
    """Derive `config.json` from the plan and the base's config.

    Each size at the top level is the maximum over the layers.
    """
    spec, base = pruned_spec(plan, masked.spec), stock_config(masked.base.config)
    config = {key: value for key, value in base.items() if key not in LEFT_OUT}
    family = spec.family
    sizes = LayerSizes(family, spec.layers, spec.hidden_size, spec.norm_size)
    top = sizes.top_level() | _without_further_layers(family)
    synonyms = {name for key in top for name in family.synonyms(key)}
    config = {key: value for key, value in config.items() if key not in synonyms} | top
    config |= {"tie_word_embeddings": spec.tied_head} if spec.tied_head else {}
    if not spec.tied_head and masked.base.spec.tied_head:
        config["tie_word_embeddings"] = False
    if spec.hidden_size != masked.spec.hidden_size:
        config[family.keys.get("hidden_size", "hidden_size")] = spec.hidden_size
    config["dtype"] = TORCH_DTYPES[masked.dtype(f"{family.embedding}.weight")]
    if is_stock_shape(spec):
        return config | heads_by_type(spec) | stock_units(spec)
    # Each layer states its own heads.
    config = {k: v for k, v in config.items() if k not in (GLOBAL_HEAD_DIM, GLOBAL_KV_HEADS)}
    if ROUTER_LOSS in config:
        # Its stock code cannot count experts whose number differs by layer.
        config[ROUTER_LOSS] = False
    return sgate_config(config, sizes, _sgate_block(spec, config["model_type"]))


def _without_further_layers(family: Family) -> dict[str, int]:
    """Say that no layer predicts further tokens: these are not among the tensors of the plan."""
    if FURTHER_LAYERS not in family.fields:
        return {}
    return {family.aliases.get(FURTHER_LAYERS, FURTHER_LAYERS): 0}


def _sgate_block(spec: ModelSpec, base_model_type: str) -> SgateBlock:
    return SgateBlock(
        family=spec.family.name,
        base_model_type=base_model_type,
        extra_biases=spec.extra_biases,
        norm_size=None if spec.norm_size == spec.hidden_size else spec.norm_size,
        head_units=None if spec.head_units == spec.hidden_size else spec.head_units,
        lowered=spec.lowered,
        expert_units=uneven_experts(spec.layers),
        shared_units=unstated_shared(spec.family, spec.layers),
        windows=narrower_windows(spec.windows),
    )
