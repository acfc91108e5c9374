"""The architecture of one model, read from its config: how wide every layer is.

One frozen value for a stock dense model and for an `sgate` folder alike. A config of an unsupported
family, or one whose values contradict each other, is refused here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sgate_serve.config_fields import check_config
from sgate_serve.errors import CheckpointError
from sgate_serve.families import (
    ATTENTION,
    DOWN,
    FAMILIES,
    GATE,
    KEY,
    MLP,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    Family,
)

SGATE_MODEL_TYPE = "sgate"
SGATE_FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerShape:
    """Widths of one layer. No heads means no attention block, no units means no MLP block."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_units: int

    @property
    def queries_per_kv(self) -> int:
        return self.num_heads // self.num_kv_heads if self.num_kv_heads else 0

    def linear_shapes(self, hidden_size: int) -> dict[str, tuple[int, int]]:
        """Return the (out, in) shape of every linear that this layer has."""
        shapes: dict[str, tuple[int, int]] = {}
        if self.num_heads:
            query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            shapes |= {QUERY: (query, hidden_size), KEY: (kv, hidden_size)}
            shapes |= {VALUE: (kv, hidden_size), OUTPUT: (hidden_size, query)}
        if self.mlp_units:
            shapes |= {GATE: (self.mlp_units, hidden_size), UP: (self.mlp_units, hidden_size)}
            shapes |= {DOWN: (hidden_size, self.mlp_units)}
        return shapes


@dataclass(frozen=True)
class ModelSpec:
    """One model's architecture: sizes, what each layer holds, and the constants of its forward."""

    family: Family
    layers: tuple[LayerShape, ...]
    hidden_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tied_head: bool
    biased_roles: frozenset[str]
    windows: tuple[int | None, ...]
    rope: Mapping[str, Any]
    extra_biases: frozenset[str] = frozenset()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> "ModelSpec":
        """Read a stock or `sgate` config; `source` names the file in errors.

        Raises CheckpointError for an unsupported family or contradicting values.
        """
        check_config(config, source)
        family = family_of(config, source)
        get = _Fields(config, source)
        num_layers, hidden = get.integer("num_hidden_layers"), get.integer("hidden_size")
        heads = get.integer("num_attention_heads")
        dense = LayerShape(
            num_heads=heads,
            num_kv_heads=get.integer("num_key_value_heads", heads),
            head_dim=get.integer("head_dim", family.default_head_dim or hidden // max(heads, 1)),
            mlp_units=get.integer("intermediate_size"),
        )
        spec = cls(
            family=family,
            layers=tuple(_layer_shapes(dense, num_layers, config, source)),
            hidden_size=hidden,
            vocab_size=get.integer("vocab_size"),
            max_positions=get.integer("max_position_embeddings", 2048),
            norm_eps=float(get("rms_norm_eps", 1e-6)),
            activation=str(get("hidden_act", "silu")),
            tied_head=bool(get("tie_word_embeddings", False)),
            biased_roles=frozenset(_biased_roles(family, config)),
            windows=tuple(_windows(family, num_layers, config, source)),
            rope=rope_parameters(config),
            extra_biases=frozenset(_sgate_block(config).get("extra_biases", ())),
        )
        spec.check(source)
        return spec

    def check(self, source: str) -> None:
        """Raise CheckpointError where head counts or widths cannot be a model."""
        for index, layer in enumerate(self.layers):
            if bool(layer.num_heads) != bool(layer.num_kv_heads):
                raise CheckpointError(f"{source}: layer {index} has query or KV heads, not both")
            if layer.num_kv_heads and layer.num_heads % layer.num_kv_heads:
                raise CheckpointError(
                    f"{source}: layer {index} has {layer.num_heads} query heads, not a multiple of "
                    f"its {layer.num_kv_heads} KV heads; correct the config"
                )
            if layer.head_dim % 2 or layer.head_dim <= 0:
                raise CheckpointError(
                    f"{source}: layer {index}: head_dim {layer.head_dim} must be even and positive"
                )
        unknown = sorted(self.extra_biases - self._linear_names())
        if unknown:
            raise CheckpointError(
                f"{source}: sgate.extra_biases names {unknown[0]!r:.80}, which is no linear of "
                "this model; convert the base checkpoint again"
            )

    def _linear_names(self) -> set[str]:
        return {
            self.family.linear(index, role)
            for index, layer in enumerate(self.layers)
            for role in layer.linear_shapes(self.hidden_size)
        }

    @property
    def has_uniform_layers(self) -> bool:
        return len(set(self.layers)) <= 1

    def has_bias(self, layer: int, role: str) -> bool:
        """Say whether the linear of `role` carries a bias, its own or one that pruning added."""
        return role in self.biased_roles or self.family.linear(layer, role) in self.extra_biases

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of every tensor that a folder of this spec must hold."""
        family, hidden = self.family, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            f"{family.embedding}.weight": (self.vocab_size, hidden)
        }
        for index, layer in enumerate(self.layers):
            if layer.num_heads:
                shapes[f"{family.norm(index, ATTENTION)}.weight"] = (hidden,)
                for norm in family.head_norms:
                    shapes[f"{family.layer_name(index)}.{norm}.weight"] = (layer.head_dim,)
            if layer.mlp_units:
                shapes[f"{family.norm(index, MLP)}.weight"] = (hidden,)
            for role, shape in layer.linear_shapes(hidden).items():
                shapes[f"{family.linear(index, role)}.weight"] = shape
                if self.has_bias(index, role):
                    shapes[f"{family.linear(index, role)}.bias"] = shape[:1]
        shapes[f"{family.final_norm}.weight"] = (hidden,)
        if not self.tied_head:
            shapes[f"{family.head}.weight"] = (self.vocab_size, hidden)
        return shapes

    @property
    def num_gateable(self) -> int:
        """Count the weights of the linears inside the blocks, the base of removed fractions."""
        shapes = (layer.linear_shapes(self.hidden_size).values() for layer in self.layers)
        return sum(rows * columns for layer in shapes for rows, columns in layer)

    @property
    def num_parameters(self) -> int:
        sizes = self.tensor_shapes().values()
        return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in sizes)


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """Return the family of a config; raise CheckpointError listing what is supported."""
    name = config.get("model_type")
    if name == SGATE_MODEL_TYPE:
        block = _sgate_block(config)
        if block.get("version") != SGATE_FORMAT_VERSION:
            raise CheckpointError(
                f"{source}: sgate format version {block.get('version')!r}, this release reads "
                f"{SGATE_FORMAT_VERSION}; convert the base checkpoint again"
            )
        name = block.get("family")
    if name not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"{source}: model_type {name!r} is not supported; supported families: {supported}"
        )
    return FAMILIES[str(name)]


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_type`, `rope_theta` and scaling values from either spelling of the config."""
    stored = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = {key: value for key, value in stored.items() if value is not None}
    theta = config.get("rope_theta")
    nested.setdefault("rope_theta", 10000.0 if theta is None else theta)
    nested.setdefault("rope_type", nested.pop("type", "default"))
    return nested


def is_stock_shape(spec: ModelSpec) -> bool:
    """Say whether the stock model class of the family can hold this spec as it is.

    transformers' own config validation wants the hidden size to be a multiple of the head count.
    """
    first = spec.layers[0]
    return (
        spec.has_uniform_layers
        and not spec.extra_biases
        and first.num_heads > 0
        and first.mlp_units > 0
        and spec.hidden_size % first.num_heads == 0
    )


def _biased_roles(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    for role, switch in family.biases.items():
        if config.get(switch) if isinstance(switch, str) else switch:
            yield role


def _windows(
    family: Family, num_layers: int, config: Mapping[str, Any], source: str
) -> Iterator[int | None]:
    """Yield each layer's sliding window in tokens, None for full attention.

    As transformers' config classes derive it: 4096 where the config is silent.
    """
    is_on = family.windows == "always" or (
        family.windows == "switched" and bool(config.get("use_sliding_window"))
    )
    if not is_on or config.get("sliding_window", 4096) is None:
        yield from [None] * num_layers
        return
    window = _Fields({"sliding_window": 4096, **config}, source).integer("sliding_window")
    first = _Fields(config, source).integer("max_window_layers", 28)
    kinds = config.get("layer_types") if family.windows == "switched" else None
    for index in range(num_layers):
        if kinds is not None:
            yield window if kinds[index] == "sliding_attention" else None
        else:
            yield window if family.windows == "always" or index >= first else None


def _sgate_block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    block = config.get("sgate", {})
    return block if isinstance(block, Mapping) else {}


def _layer_shapes(
    dense: LayerShape, num_layers: int, config: Mapping[str, Any], source: str
) -> Iterator[LayerShape]:
    """Apply `per_layer_config` (zero-padded string keys, flat HF names, `skip`) to each layer."""
    overrides = {int(key): value for key, value in (config.get("per_layer_config") or {}).items()}
    unknown = sorted(set(overrides) - set(range(num_layers)))
    if unknown:
        raise CheckpointError(f"{source}: per_layer_config names layers {unknown} of {num_layers}")
    for index in range(num_layers):
        get = _Fields(overrides.get(index) or {}, f"{source}: per_layer_config[{index}]")
        shape = LayerShape(
            num_heads=get.integer("num_attention_heads", dense.num_heads),
            num_kv_heads=get.integer("num_key_value_heads", dense.num_kv_heads),
            head_dim=get.integer("head_dim", dense.head_dim),
            mlp_units=get.integer("intermediate_size", dense.mlp_units),
        )
        skip = get("skip", ())
        if ATTENTION in skip:
            shape = replace(shape, num_heads=0, num_kv_heads=0)
        if MLP in skip:
            shape = replace(shape, mlp_units=0)
        yield shape


class _Fields:
    """Typed access to one JSON object; a missing or mistyped field names the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def __call__(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CheckpointError(f"{self.source}: {key} must be a whole number, found {value!r}")
        return value
