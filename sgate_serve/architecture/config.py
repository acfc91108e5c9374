"""What a config.json says in our terms: family, task, widths per layer, windows, positions.

Every family's own spelling is absorbed here. Types were checked before (`config_fields`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import ATTENTION, BASE, CAUSAL_LM, MLP, Family
from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import OBJECT, TEXT, check_fields

SGATE_MODEL_TYPE = "sgate"
SGATE_FORMAT_VERSION = 2
# Version 1 is version 2 without index vectors, residual removal and units on top.
READ_VERSIONS = (1, 2)
SGATE_CLASS_PREFIX = "SGate"


class Fields:
    """Typed access to one JSON object in our names; errors name the file and its own key."""

    def __init__(self, values: Mapping[str, Any], source: str, family: Family | None = None):
        self.values, self.source = values, source
        self._keys = {} if family is None else family.keys
        self._defaults = {} if family is None else family.defaults

    def __call__(self, key: str, default: Any = None) -> Any:
        value = self.values.get(self._keys.get(key, key))
        return self._defaults.get(key, default) if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            own = self._keys.get(key, key)
            raise CheckpointError(f"{self.source}: {own} must be a whole number, found {value!r}")
        return value


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """Return the family of a config; raise CheckpointError listing what is supported."""
    check_fields(config, {"model_type": TEXT, "sgate": OBJECT}, source, CheckpointError)
    check_fields(sgate_block(config), {"family": TEXT}, f"{source}: sgate", CheckpointError)
    name = config.get("model_type")
    if name == SGATE_MODEL_TYPE:
        block = sgate_block(config)
        if block.get("version") not in READ_VERSIONS:
            raise CheckpointError(
                f"{source}: sgate format version {block.get('version')!r}, this release reads "
                f"{' and '.join(map(str, READ_VERSIONS))}; convert the base checkpoint again"
            )
        name = block.get("family")
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
    """Return what the model is for, from `architectures`; without them the family's usual use."""
    names = config.get("architectures") or ()
    if not names:
        return CAUSAL_LM if CAUSAL_LM in family.tasks else BASE
    name = next(iter(names)).removeprefix(SGATE_CLASS_PREFIX)
    for task, row in family.tasks.items():
        if row.model_class == name:
            return task
    supported = ", ".join(row.model_class for row in family.tasks.values())
    raise CheckpointError(
        f"{source}: architecture {name:.80} of family {family.name} is not supported (supported: "
        f"{supported}); load it in transformers as one of these and save it again"
    )


def sgate_block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    block = config.get("sgate") or {}
    return block if isinstance(block, Mapping) else {}


def dense_shape(get: Fields, family: Family) -> LayerShape:
    """Return the widths at the top level of the config: those of every layer without its own."""
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    return LayerShape(
        num_heads=heads,
        num_kv_heads=get.integer("num_key_value_heads", heads) if family.has_kv_heads else heads,
        head_dim=get.integer("head_dim", hidden // max(heads, 1)),
        mlp_units=get.integer("intermediate_size", 4 * hidden),
    )


def layer_shapes(
    dense: LayerShape, family: Family, num_layers: int, config: Mapping[str, Any], source: str
) -> Iterator[LayerShape]:
    """Apply `per_layer_config` (zero-padded string keys, flat HF names, `skip`) to each layer."""
    overrides = {int(key): value for key, value in (config.get("per_layer_config") or {}).items()}
    unknown = sorted(set(overrides) - set(range(num_layers)))
    if unknown:
        raise CheckpointError(f"{source}: per_layer_config names layers {unknown} of {num_layers}")
    keys = replace(family, defaults={})
    for index in range(num_layers):
        get = Fields(overrides.get(index) or {}, f"{source}: per_layer_config[{index}]", keys)
        heads = get.integer("num_attention_heads", dense.num_heads)
        kv_heads = heads
        if family.has_kv_heads:
            kv_heads = get.integer("num_key_value_heads", dense.num_kv_heads)
        units = get.integer("intermediate_size", dense.mlp_units)
        skip = get("skip", ())
        yield LayerShape(
            num_heads=0 if ATTENTION in skip else heads,
            num_kv_heads=0 if ATTENTION in skip else kv_heads,
            head_dim=get.integer("head_dim", dense.head_dim),
            mlp_units=0 if MLP in skip else units,
        )


def lowered_modules(config: Mapping[str, Any]) -> dict[str, Lowered]:
    """Return the modules with index vectors and how much of them is stored."""
    entries = sgate_block(config).get("lowered") or {}
    return {name: Lowered(**entry) for name, entry in entries.items()}


def biased_roles(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    for role, switch in family.biases.items():
        if config.get(switch) if isinstance(switch, str) else switch:
            yield role


def num_labels(config: Mapping[str, Any]) -> int:
    """Return the number of classes, as transformers derives it; 1 is a regression."""
    names = config.get("id2label")
    return int(config.get("num_labels") or 2) if names is None else len(names)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_type`, `rope_theta` and scaling values from either spelling of the config."""
    stored = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = {key: value for key, value in stored.items() if value is not None}
    theta, share = config.get("rope_theta"), config.get("partial_rotary_factor")
    nested.setdefault("rope_theta", 10000.0 if theta is None else theta)
    nested.setdefault("rope_type", nested.pop("type", "default"))
    if share is not None:
        nested.setdefault("partial_rotary_factor", share)
    return nested


def rotary_dims(head_dim: int, family: Family, config: Mapping[str, Any]) -> int:
    """Return how many dimensions of each head rotate.

    A `partial_rotary_factor` counts only where transformers' class of the family reads it.
    """
    if not family.is_rotary:
        return 0
    share = rope_parameters(config).get("partial_rotary_factor")
    return int(head_dim * share) if share is not None and family.has_partial_rotation else head_dim


def windows(
    family: Family, num_layers: int, config: Mapping[str, Any], source: str
) -> Iterator[int | None]:
    """Yield each layer's sliding window in tokens, None for full attention.

    As transformers' config classes derive it.
    """
    get = Fields({**family.defaults, **config}, source)
    is_on = family.windows in ("always", "typed") or (
        family.windows == "switched" and bool(config.get("use_sliding_window"))
    )
    if not is_on or get("sliding_window") is None:
        yield from [None] * num_layers
        return
    window, first = get.integer("sliding_window"), get.integer("max_window_layers", 28)
    kinds = config.get("layer_types") if family.windows != "always" else None
    for index in range(num_layers):
        is_sliding = family.windows == "always" or index >= first
        if kinds is not None:
            is_sliding = kinds[index] == "sliding_attention"
        elif family.windows == "typed":
            is_sliding = (index + 1) % max(get.integer("sliding_window_pattern"), 1) != 0
        yield window if is_sliding else None
