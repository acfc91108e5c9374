"""A config.json in our terms: family, task, dense widths, scales, labels.

Every family's own spelling ends here, in `windows`, `rope` and `sgate_config`. The types of the
fields are checked before, by `config_schema`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from reprlib import repr as brief
from typing import Any, Literal

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Axes, Family, TaskHead
from sgate_serve.architecture.gated_units import ClampedUnits
from sgate_serve.architecture.mixture import Mixture
from sgate_serve.architecture.recurrent_layers import recurrent_shape
from sgate_serve.architecture.sgate_config import (
    GLOBAL_HEAD_DIM,
    GLOBAL_KV_HEADS,
    PER_LAYER,
    READ_VERSIONS,
    SGATE_CLASS_PREFIX,
    SGATE_MODEL_TYPE,
    SHARED_UNITS,
    stored_block,
    stored_family,
)
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.shared_keys import with_shared_keys
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import OBJECT, TEXT, check_fields


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """Return the family of a config; raise CheckpointError listing what is supported."""
    check_fields(config, {"model_type": TEXT, "sgate": OBJECT}, source, CheckpointError)
    block = stored_block(config)
    check_fields(block, {"family": TEXT}, f"{source}: sgate", CheckpointError)
    if config.get("model_type") == SGATE_MODEL_TYPE and block.get("version") not in READ_VERSIONS:
        raise CheckpointError(
            f"{source}: sgate format version {block.get('version')!r}, this release reads "
            f"{' and '.join(map(str, READ_VERSIONS))}; convert the base checkpoint again"
        )
    name = stored_family(config)
    if name not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        text = _family_of_text(config)
        remedy = f"its text part is of family {text}: save that alone (docs/families.md)"
        raise CheckpointError(
            f"{source}: model_type {brief(name)} is not supported; "
            + (remedy if text else f"supported families: {supported}")
        )
    return FAMILIES[str(name)]


def _family_of_text(config: Mapping[str, Any]) -> str | None:
    """Return the family of the text in a model of text and images, if it is supported."""
    text = config.get("text_config")
    name = text.get("model_type") if isinstance(text, Mapping) else None
    return name if isinstance(name, str) and name in FAMILIES else None


def task_of(config: Mapping[str, Any], family: Family, source: str) -> str:
    """Return the model's task, from `architectures`; without them the family's default."""
    names = config.get("architectures") or ()
    if not names:
        return family.default_task
    name = next(iter(names)).removeprefix(SGATE_CLASS_PREFIX)
    for task, head in family.tasks.items():
        if head.model_class == name:
            return task
    supported = ", ".join(head.model_class for head in family.tasks.values())
    raise CheckpointError(
        f"{source}: architecture {name:.80} of family {family.name} is not supported (supported: "
        f"{supported}); load it in transformers as one of these and save it again"
    )


def dense_shapes(
    get: ConfigReader, family: Family, windows: Sequence[int | None]
) -> Iterator[LayerShape]:
    """Yield the widths of each layer by the top level of the config, where no layer has its own."""
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    shape = LayerShape(
        num_heads=heads,
        num_kv_heads=get.integer("num_key_value_heads", heads) if family.has_kv_heads else heads,
        head_dim=get.integer("head_dim", hidden // max(heads, 1)),
        mlp_units=get.integer("intermediate_size", 4 * hidden),
    )
    yield from with_shared_keys(
        get, family, list(_own_shapes(get, family, shape, windows)), windows
    )


def _own_shapes(
    get: ConfigReader, family: Family, shape: LayerShape, windows: Sequence[int | None]
) -> Iterator[LayerShape]:
    """Yield the shapes of layers that all have keys; `shape` is that of one without a kind."""
    for index, window in enumerate(windows):
        own = shape
        if index in family.recurrent_layers:
            own = recurrent_shape(get, shape)
        elif family.has_heads_by_type and window is None:
            own = global_shape(shape, get)
        mixture = family.mixture if has_experts(get, index) else None
        yield own if mixture is None else mixture_shape(own, mixture, get)


def global_shape(shape: LayerShape, get: ConfigReader) -> LayerShape:
    """Return the shape of a layer without a window, where these have heads of their own.

    A config with entries for single layers has the sizes there.
    """
    has_values = not get("attention_k_eq_v")
    if PER_LAYER in get.values:
        return replace(shape, has_values=has_values)
    kv_heads = None if has_values else get(GLOBAL_KV_HEADS)
    return replace(
        shape,
        num_kv_heads=shape.num_kv_heads if kv_heads is None else kv_heads,
        head_dim=get.integer(GLOBAL_HEAD_DIM),
        has_values=has_values,
    )


def has_experts(get: ConfigReader, index: int) -> bool:
    """Say whether a layer of a family with mixtures is one, as transformers' classes decide."""
    is_late = index >= get.integer("first_k_dense_replace", 0)
    step = get.integer("decoder_sparse_step", 1)
    return is_late and index not in (get("mlp_only_layers") or ()) and (index + 1) % step == 0


def mixture_shape(shape: LayerShape, mixture: Mixture, get: ConfigReader) -> LayerShape:
    """Return the shape of a layer with experts instead of an MLP."""
    count, width = get.integer("num_experts"), get.integer(mixture.units)
    shared = _shared_units(mixture, width, get)
    top_k = get.integer("num_experts_per_tok")
    if not 0 < top_k <= count:
        raise CheckpointError(
            f"{get.source}: {get.own_key('num_experts_per_tok')} {top_k} of {count} experts; a "
            "token uses at least one and at most all"
        )
    experts = (width,) * count
    return replace(shape, mlp_units=width * count + shared, experts=experts, top_k=top_k)


def _shared_units(mixture: Mixture, width: int, get: ConfigReader) -> int:
    """Return the width of the expert that every token uses; other experts have this `width`."""
    if mixture.shared_multiple is not None:
        return width * get.integer(mixture.shared_multiple)
    return get.integer(SHARED_UNITS) if mixture.shared else 0


def check_sizes(get: ConfigReader, family: Family) -> None:
    """Raise CheckpointError for sizes with which transformers cannot build the model.

    Uneven models have other classes, and sizes of single layers that may be 0.
    """
    _check_padding_id(get, family)
    if get.values.get("model_type") == SGATE_MODEL_TYPE:
        return
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    _check_head_width(get, family, hidden // max(heads, 1))
    if not heads or get("intermediate_size") == 0:
        raise CheckpointError(f"{get.source}: a stock model has attention heads and MLP units")
    if family.mixture is not None and get.integer("num_experts") < family.mixture.least_experts:
        raise CheckpointError(
            f"{get.source}: {get.own_key('num_experts')} is {get.integer('num_experts')}; "
            f"transformers' router of family {family.name} chooses among at least "
            f"{family.mixture.least_experts}"
        )
    if family.divides_hidden_size and hidden % heads:
        key, own = get.own_key("hidden_size"), get.own_key("num_attention_heads")
        raise CheckpointError(
            f"{get.source}: {key} {hidden} is not a multiple of {own} {heads}; transformers "
            f"refuses such a config of family {family.name}"
        )


def _check_head_width(get: ConfigReader, family: Family, width: int) -> None:
    """Refuse a `head_dim` where the class derives the width of heads, and rotates by this one."""
    stated = get.values.get("head_dim")
    if family.is_rotary and "head_dim" not in family.fields and stated not in (None, width):
        raise CheckpointError(
            f"{get.source}: head_dim is {brief(stated)}, and heads of family {family.name} are "
            f"hidden size / heads, {width} wide; transformers would rotate them by another width: "
            "correct it or remove it"
        )


def _check_padding_id(get: ConfigReader, family: Family) -> None:
    """Refuse an id without a row in the embeddings, or in the positions that start after it."""
    padding, rows = get("pad_token_id"), get.integer("vocab_size")
    first = -rows
    if family.has_padded_positions:
        first, rows = 0, min(rows, get.integer("max_position_embeddings"))
        if padding is None:
            raise CheckpointError(f"{get.source}: pad_token_id is null; positions start after it")
    if padding is None or not family.has_padding_row or first <= padding < rows:
        return
    origin = "" if "pad_token_id" in get.values else ", the default of its class,"
    raise CheckpointError(
        f"{get.source}: pad_token_id {padding}{origin} is not an id from {first} to {rows - 1}; "
        "transformers refuses it: give one that is"
    )


def biased_roles(get: ConfigReader, family: Family) -> Iterator[str]:
    """Yield the roles whose linears have a bias in every layer."""
    for role, switch in family.biases.items():
        if _is_on(get, switch):
            yield role


def has_norm_bias(get: ConfigReader, family: Family) -> bool:
    return _is_on(get, family.norm_biases)


def outside(get: ConfigReader, family: Family) -> dict[str, Axes]:
    """Return the tensors outside the layers and the head that the config has, with their axes."""
    return {name: axes for name, axes in family.outside.items() if _is_there(get, family, name)}


def task_head(get: ConfigReader, family: Family, task: str) -> TaskHead:
    """Return the part on top as the config has it: its tensors, its activation, its pooling."""
    head = family.tasks[task]
    dense, pooling = head.dense, head.pooling
    tensors = {name: axes for name, axes in head.tensors.items() if _is_there(get, family, name)}
    if dense is not None:
        dense = replace(dense, activation=str(get(dense.activation, dense.activation)))
    return TaskHead(head.model_class, tensors, dense, pooling and str(get(pooling, pooling)))


def _is_there(get: ConfigReader, family: Family, tensor: str) -> bool:
    return tensor not in family.optional or bool(get(family.optional[tensor]))


def norm_topk_prob(get: ConfigReader, family: Family) -> bool:
    """Say whether the shares of a token's experts are divided by their sum."""
    return family.mixture is not None and _is_on(get, family.mixture.normalizes)


def input_size(get: ConfigReader, family: Family, size: Literal["width", "vocab"]) -> int:
    """Return a size of what layers read besides the stream, 0 if they do not."""
    return 0 if family.layer_inputs is None else get.integer(getattr(family.layer_inputs, size))


def clamped_units(get: ConfigReader, family: Family) -> ClampedUnits | None:
    """Return how the units of a family's experts are clamped, if they are."""
    if family.mixture is None or not family.mixture.has_clamped_units:
        return None
    return ClampedUnits(alpha=float(get("swiglu_alpha")), limit=float(get("swiglu_limit")))


def switched_family(get: ConfigReader, family: Family) -> Family:
    """Return a family without what its config switches off: norms, mixtures, inputs of layers."""
    mixture = family.mixture
    if mixture is not None and not _is_on(get, mixture.switch or True):
        mixture = None
    inputs = family.layer_inputs
    if inputs is not None and not get.integer(inputs.width):
        inputs = None
    norms = family.head_norms if _is_on(get, family.has_head_norms) else ()
    return replace(family, head_norms=norms, mixture=mixture, layer_inputs=inputs)


def _is_on(get: ConfigReader, switch: bool | str) -> bool:
    """Say whether an entry's switch is on, which may be a field of the config."""
    return bool(get(switch)) if isinstance(switch, str) else switch


def num_labels(config: Mapping[str, Any]) -> int:
    """Return the number of classes, as transformers derives it; 1 is a regression."""
    names = config.get("id2label")
    return int(config.get("num_labels", 2)) if names is None else len(names)


def label_names(config: Mapping[str, Any], source: str) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the outputs; None if the config has none.

    Raises CheckpointError unless the names are numbered from 0.
    """
    stored = config.get("id2label")
    if stored is None:
        return None
    names = {str(key): name for key, name in stored.items()} if isinstance(stored, Mapping) else {}
    keys = [str(index) for index in range(len(names))]
    if not names or set(names) != set(keys):
        raise CheckpointError(
            f"{source}: id2label is {stored!r}; it must map every number from 0 to a label's name"
        )
    return tuple(str(names[key]) for key in keys)


def attention_scales(get: ConfigReader, layers: Sequence[LayerShape]) -> Iterator[float]:
    """Yield what the scores of each layer are multiplied by, as transformers derives it."""
    for index, layer in enumerate(layers):
        base = get("query_pre_attn_scalar") or max(layer.key_dim or layer.head_dim, 1)
        scale = float(base**-0.5) if get("scale_attn_weights", True) else 1.0
        scale = float(get("attention_multiplier", scale))
        yield scale / (index + 1) if get("scale_attn_by_inverse_layer_idx") else scale


def softcap(get: ConfigReader, key: str) -> float | None:
    """Return a soft cap's bound; an explicit null turns it off, whatever the class default."""
    cap = get(key)
    return None if cap is None else float(cap)
