"""The second opinion on a config.json: what transformers' own classes make of it.

A `ModelSpec` is read without transformers. Here its constants are compared with those of the config
and the model that the Auto classes build from the same folder, on the meta device, so that no
weight is read. A difference, or a config that transformers refuses, is an error.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION, SLIDING_ATTENTION
from sgate_serve.architecture.layer_tensors import IN_INDEX, OUT_INDEX
from sgate_serve.architecture.rope import LONGROPE, OLD_TYPE, PARTIAL, Rope
from sgate_serve.architecture.sgate_config import BLOCK, SGATE_CLASS_PREFIX
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.text_part import text_part
from sgate_serve.checkpoint.int8 import CONFIG_KEY
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json
from sgate_serve.models import AUTO_CLASSES
from sgate_serve.models.experts import stacked_place
from sgate_serve.models.names import name_in
from sgate_serve.models.refusals import refusals_named
from sgate_serve.models.routers import choice_of
from sgate_serve.models.wholes import text_config_of

ACTIVATIONS = ("act_fn", "activation_fn", "act", "intermediate_act_fn", "activation")
EPSILONS = ("variance_epsilon", "eps")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size")
PARALLEL = "use_parallel_residual"
INDEX_ENDINGS = (f".{IN_INDEX}", f".{OUT_INDEX}")
# One constant: the name of its field, our value, and transformers'.
Pair = tuple[str, Any, Any]


def check_reading(folder: Path, source: Path | None = None) -> None:
    """Compare what `ModelSpec` and transformers' Auto classes read in the folder's config.json.

    Whether stored weights untie a head is not asked here. Raises CheckpointError naming the file
    (`source`, if it will have another place), the field and both values, or transformers' own
    reason for refusing the config.
    """
    source = source or folder / CONFIG_FILE
    part = text_part(read_json(folder / CONFIG_FILE), str(source))
    spec = ModelSpec.from_config(part.config, part.source)
    with refusals_named(source), _quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        config = text_config_of(config)
        if hasattr(config, CONFIG_KEY):
            # Only weights are quantized: the classes and constants are those of the float model.
            del config.quantization_config
        with torch.device("meta"):
            model: PreTrainedModel = AUTO_CLASSES[spec.task].from_config(config)
        pairs = list(_pairs(spec, model))
    for field, ours, theirs in pairs:
        if not _is_equal(ours, theirs):
            raise CheckpointError(
                f"{source}: {field} is {ours} as sgate reads it and {theirs} as transformers "
                f"{transformers.__version__} does; write it in config.json as transformers reads it"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' remarks on a config: what matters here is an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _is_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-12)
    return bool(ours == theirs)


def _pairs(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    """Yield every constant that both sides derive."""
    config = model.config
    name = type(model).__name__.removeprefix(SGATE_CLASS_PREFIX)
    yield "the model class", spec.head.model_class, name
    yield from _sizes(spec, model)
    yield from _forward_constants(spec, model)
    if spec.family.is_rotary:
        yield from _ropes(spec, model)
    for index, window in enumerate(spec.windows):
        yield f"the window of layer {index}", window, _window(config, index)


def _sizes(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    config, keys = model.config, spec.family.keys
    yield "num_hidden_layers", len(spec.layers), config.num_hidden_layers
    key = "max_position_embeddings"
    yield keys.get(key, key), spec.num_positions, config.max_position_embeddings
    if spec.task == CLASSIFICATION:
        yield "num_labels", spec.num_labels, config.num_labels
    if spec.task == CAUSAL_LM:
        yield "tie_word_embeddings", spec.tied_head, bool(config.tie_word_embeddings)
    yield from _shapes(spec, model)


def _shapes(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    stored = {name for name in model.state_dict() if not name.endswith(INDEX_ENDINGS)}
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    theirs = dict(model.named_parameters()) | buffers
    seen = {name_in(model, spec.family, name) for name in _pooler(spec) if spec.lacks_pooler}
    for name, shape in sorted(spec.tensor_shapes().items()):
        if name.endswith(INDEX_ENDINGS):
            continue
        own = name_in(model, spec.family, name)
        found = theirs.get(own)
        if found is None and spec.expert_of(name.rpartition(".")[0]) is not None:
            own, select = stacked_place(own, spec.family)
            found = select(theirs[own]) if own in theirs else None
        seen.add(own)
        yield f"the shape of {name}", shape, None if found is None else tuple(found.shape)
    # What is not stored transformers fills at random, and nothing here reads a pooler of that kind.
    for name in sorted(theirs.keys() - seen):
        yield f"the shape of {name}", None, tuple(theirs[name].shape)


def _pooler(spec: ModelSpec) -> Collection[str]:
    return spec.family.tasks[spec.task].tensors.keys()


def _forward_constants(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    config, keys = model.config, spec.family.keys
    for layer_name, module in model.named_modules():
        for eps in (getattr(module, name) for name in EPSILONS if hasattr(module, name)):
            yield f"{keys.get('norm_eps', 'eps')} of {layer_name}", spec.norm_eps, float(eps)
    expected = repr(ACT2FN[spec.activation])
    for index, layer in enumerate(spec.layers):
        stock = _layer(spec, model, index)
        is_parallel = getattr(stock, PARALLEL, False)
        yield f"{PARALLEL} of layer {index}", spec.has_parallel_blocks, is_parallel
        for name, module in stock.named_modules():
            if name.rpartition(".")[2] in ACTIVATIONS:
                key = keys.get("hidden_act", "hidden_act")
                yield f"{key} of layer {index}", expected, repr(module)
            if layer.num_heads and hasattr(module, "scaling"):
                where = f"of layer {index}"
                yield f"the scale {where}", spec.attention_scales[index], float(module.scaling)
                width = next(getattr(module, key) for key in HEAD_WIDTHS if hasattr(module, key))
                yield f"head_dim {where}", layer.head_dim, width
    for key, cap in (
        ("attn_logit_softcapping", spec.attention_softcap),
        ("final_logit_softcapping", spec.logit_softcap),
    ):
        yield key, cap, getattr(config, key) if key in config.__dataclass_fields__ else None
    yield from _head_settings(spec, model)
    yield from _multipliers(spec, model)
    yield from _choices(spec, model)
    if spec.family.has_padded_positions:
        padding = model.base_model.embeddings.padding_idx
        yield "the first position", spec.first_position, padding + 1
    if not spec.is_encoder:
        yield "is_causal", True, bool(getattr(config, "is_causal", True))


def _head_settings(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    """Yield what the config says of the part on top, where it says anything."""
    entry, own = spec.family.tasks[spec.task], spec.head
    named = {} if entry.pooling is None else {entry.pooling: own.pooling}
    if entry.dense is not None and own.dense is not None:
        named[entry.dense.activation] = own.dense.activation
    for key, ours in named.items():
        if key in spec.family.fields:
            yield key, ours, getattr(model.config, key)


def _choices(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    """Yield how many experts each router has and chooses, and whether their shares add up to 1."""
    for index, layer in enumerate(spec.layers):
        if not layer.experts:
            continue
        name = name_in(model, spec.family, spec.family.router_name(index))
        count, top_k, router = choice_of(model, name)
        where = f"of layer {index}"
        yield f"the number of experts {where}", len(layer.experts), count
        yield f"num_experts_per_tok {where}", layer.top_k, top_k
        normalizes = getattr(router, "norm_topk_prob", True)
        yield f"norm_topk_prob {where}", spec.norm_topk_prob, normalizes
        factor = float(getattr(router, "routed_scaling_factor", 1))
        yield f"routed_scaling_factor {where}", spec.routed_scaling, factor
    if (clamped := spec.clamped_units) is not None:
        yield "swiglu_alpha", clamped.alpha, float(model.config.swiglu_alpha)
        yield "swiglu_limit", clamped.limit, float(model.config.swiglu_limit)


def _multipliers(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    if spec.family.has_multipliers:
        for key, own in (
            ("embedding_multiplier", spec.embedding_multiplier),
            ("residual_multiplier", spec.residual_multiplier),
            ("logits_scaling", spec.logit_divisor),
        ):
            yield key, own, float(getattr(model.config, key))
        return
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", None)
    yield "the scale of embeddings", spec.embedding_scale, None if scale is None else float(scale)


def _layer(spec: ModelSpec, model: PreTrainedModel, index: int) -> torch.nn.Module:
    name = spec.family.layer_name(index).removeprefix(f"{spec.family.prefix}.")
    layer: torch.nn.Module = model.base_model.get_submodule(name)
    return layer


def _window(config: PreTrainedConfig, index: int) -> int | None:
    """Return the window that a layer's mask has in transformers, as its model class builds it."""
    # Of its class: other classes keep the key of a config.json, and have no window.
    if not hasattr(type(config), "sliding_window"):
        return None
    has_types = "layer_types" in config.__dataclass_fields__
    if has_types and config.layer_types[index] != SLIDING_ATTENTION:
        return None
    narrower = (getattr(config, BLOCK, None) or {}).get("windows") or {}
    window: int | None = narrower.get(str(index), config.sliding_window)
    return window


def _ropes(spec: ModelSpec, model: PreTrainedModel) -> Iterator[Pair]:
    config = model.config
    # Built once more, because the tables of the model above have no values.
    rotary = type(model.base_model.rotary_emb)(config)
    for index, rope in enumerate(spec.ropes):
        if spec.family.has_unrotated_layers:
            rotates = bool(config.no_rope_layers[index])
            yield f"rotation of layer {index}", rope is not None, rotates
        if rope is None:
            continue
        settings, prefix = config.rope_parameters, ""
        if spec.family.has_rope_by_type:
            layer_type = config.layer_types[index]
            settings, prefix = settings[layer_type], f"{layer_type}_"
        ours, theirs = _settings(rope), _settings(Rope(settings))
        # Where heads rotate whole, what a config says of a share is not read.
        unread = set() if spec.family.has_partial_rotation else {PARTIAL}
        for key in sorted({*ours, *theirs} - unread):
            yield f"{key} of layer {index}", ours.get(key), theirs.get(key)
        pairs = -(-spec.rotary_dims(index) // 2)
        yield f"rotary pairs of layer {index}", pairs, len(getattr(rotary, f"{prefix}inv_freq"))


def _settings(rope: Rope) -> dict[str, Any]:
    """Return the settings that count: without old names, and with a whole head spelled out."""
    derived = {"factor"} if rope.rope_type == LONGROPE else set()
    settings = {k: v for k, v in rope.settings.items() if k != OLD_TYPE and k not in derived}
    return {PARTIAL: 1.0, **settings}
