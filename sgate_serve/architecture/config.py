"""A config.json in our terms: family, task, dense widths, windows, scales, labels.

Every family's own spelling ends here, in `rope` and in `sgate_config`. The types of the fields are
checked before, by `config_schema`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import SLIDING_ATTENTION, Family
from sgate_serve.architecture.sgate_config import (
    READ_VERSIONS,
    SGATE_CLASS_PREFIX,
    SGATE_MODEL_TYPE,
    stored_block,
    stored_family,
)
from sgate_serve.architecture.shapes import LayerShape
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
        raise CheckpointError(
            f"{source}: model_type {name!r} is not supported; supported families: {supported}"
        )
    family = FAMILIES[str(name)]
    for key in family.refused:
        if config.get(key):
            raise CheckpointError(
                f"{source}: {key} {config[key]!r} is not supported for family {family.name}; "
                "convert a checkpoint without it"
            )
    return family


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


def dense_shape(get: ConfigReader, family: Family) -> LayerShape:
    """Return the widths at the top level of the config: a layer without its own has these."""
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    return LayerShape(
        num_heads=heads,
        num_kv_heads=get.integer("num_key_value_heads", heads) if family.has_kv_heads else heads,
        head_dim=get.integer("head_dim", hidden // max(heads, 1)),
        mlp_units=get.integer("intermediate_size", 4 * hidden),
    )


def first_position(get: ConfigReader, family: Family, source: str) -> int:
    """Return the row of the position table that the first token reads.

    It follows the padding id, which is −1 where a model has none.
    """
    if not family.has_padded_positions:
        return 0
    padding = int(get("pad_token_id"))
    if padding < -1:
        raise CheckpointError(
            f"{source}: pad_token_id {padding} leaves no first position; give the id of the "
            "padding token, or -1 for none"
        )
    return padding + 1


def biased_roles(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the roles whose linears have a bias in every layer."""
    for role, switch in family.biases.items():
        if config.get(switch) if isinstance(switch, str) else switch:
            yield role


def num_labels(config: Mapping[str, Any]) -> int:
    """Return the number of classes, as transformers derives it; 1 is a regression."""
    names = config.get("id2label")
    return int(config.get("num_labels") or 2) if names is None else len(names)


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


def attention_scales(
    family: Family, config: Mapping[str, Any], layers: Sequence[LayerShape]
) -> Iterator[float]:
    """Yield what the scores of each layer are multiplied by, as transformers derives it."""
    values = {**family.defaults, **config}
    for index, layer in enumerate(layers):
        base = values.get("query_pre_attn_scalar") or max(layer.head_dim, 1)
        scale = float(base**-0.5) if values.get("scale_attn_weights", True) else 1.0
        yield scale / (index + 1) if values.get("scale_attn_by_inverse_layer_idx") else scale


def softcap(family: Family, config: Mapping[str, Any], key: str) -> float | None:
    """Return a soft cap's bound; an explicit null turns it off, whatever the family's default."""
    cap = {**family.defaults, **config}.get(key)
    return None if cap is None else float(cap)


def windows(
    family: Family, num_layers: int, config: Mapping[str, Any], source: str
) -> Iterator[int | None]:
    """Yield each layer's sliding window in tokens, None for full attention.

    The derivation is that of transformers' config classes.
    """
    get = ConfigReader({**family.defaults, **config}, source)
    is_on = family.windows in ("always", "typed") or (
        family.windows == "switched" and bool(config.get("use_sliding_window"))
    )
    if not is_on or get("sliding_window") is None:
        yield from [None] * num_layers
        return
    window, first = get.integer("sliding_window"), get.integer("max_window_layers", 28)
    types = config.get("layer_types") if family.windows != "always" else None
    for index in range(num_layers):
        is_sliding = family.windows == "always" or index >= first
        if types is not None:
            is_sliding = types[index] == SLIDING_ATTENTION
        elif family.windows == "typed":
            is_sliding = (index + 1) % max(get.integer("sliding_window_pattern"), 1) != 0
        yield window if is_sliding else None
