"""The `model_type: sgate` parts of a config, read and written here alone: docs/format.md.

These are `per_layer_config`, the widths of each layer where they differ from the top level, and the
block `sgate`, which holds what Hugging Face has no name for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sgate_serve.architecture.config_reader import ConfigReader
from sgate_serve.architecture.family import ATTENTION, MLP, Family
from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.errors import CheckpointError

SGATE_MODEL_TYPE = "sgate"
SGATE_FORMAT_VERSION = 2
# Version 1 is version 2 without index vectors, residual removal and units on top.
READ_VERSIONS = (1, 2)
SGATE_CLASS_PREFIX = "SGate"
BLOCK, PER_LAYER, SKIP = "sgate", "per_layer_config", "skip"
HEADS, KV_HEADS = "num_attention_heads", "num_key_value_heads"
HEAD_DIM, UNITS = "head_dim", "intermediate_size"
# Those of layers without a window, where these have heads of their own.
GLOBAL_HEAD_DIM, GLOBAL_KV_HEADS = "global_head_dim", "num_global_key_value_heads"
EXPERTS, TOP_K = "num_experts", "num_experts_per_tok"
SHARED_UNITS = "shared_expert_intermediate_size"
VALUE_HEADS, KEY_HEADS = "linear_num_value_heads", "linear_num_key_heads"


@dataclass(frozen=True)
class SgateBlock:
    """The block `sgate`; a value that is None is as in a stock model."""

    family: str
    base_model_type: str
    extra_biases: frozenset[str] = frozenset()
    norm_size: int | None = None
    head_units: int | None = None
    lowered: Mapping[str, Lowered] = field(default_factory=dict)
    # By layer, the widths of experts that differ in their layer.
    expert_units: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    # By layer, the widths of shared experts, where the config of the family does not state one.
    shared_units: Mapping[int, int] = field(default_factory=dict)
    # By layer, windows that are narrower than the config's.
    windows: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "SgateBlock":
        """Read the block of a config whose types have been checked; a stock model has none."""
        block, model_type = stored_block(config), config.get("model_type")
        family = str(block.get("family") if model_type == SGATE_MODEL_TYPE else model_type)
        lowered = block.get("lowered") or {}
        return cls(
            family=family,
            base_model_type=str(block.get("base_model_type") or family),
            extra_biases=frozenset(block.get("extra_biases") or ()),
            norm_size=block.get("norm_size"),
            head_units=block.get("head_units"),
            lowered={name: Lowered(**entry) for name, entry in lowered.items()},
            expert_units={
                int(layer): tuple(widths)
                for layer, widths in (block.get("expert_units") or {}).items()
            },
            shared_units={
                int(layer): width for layer, width in (block.get("shared_units") or {}).items()
            },
            windows={int(layer): window for layer, window in (block.get("windows") or {}).items()},
        )

    def to_json(self) -> dict[str, Any]:
        block: dict[str, Any] = {
            "version": SGATE_FORMAT_VERSION,
            "family": self.family,
            "base_model_type": self.base_model_type,
            "extra_biases": sorted(self.extra_biases),
        }
        sizes = {"norm_size": self.norm_size, "head_units": self.head_units}
        block |= {name: size for name, size in sizes.items() if size is not None}
        if self.lowered:
            block["lowered"] = {
                name: {k: v for k, v in vars(lowered).items() if v is not None}
                for name, lowered in self.lowered.items()
            }
        if self.expert_units:
            block["expert_units"] = {
                str(layer): list(widths) for layer, widths in self.expert_units.items()
            }
        if self.shared_units:
            block["shared_units"] = {str(layer): w for layer, w in self.shared_units.items()}
        if self.windows:
            block["windows"] = {str(layer): window for layer, window in self.windows.items()}
        return block


@dataclass(frozen=True)
class LayerSizes:
    """The widths of a model's layers, as a config of its family spells them.

    `hidden_size` is the width of the residual stream, `norm_size` its width before removal.
    """

    family: Family
    layers: tuple[LayerShape, ...]
    hidden_size: int
    norm_size: int

    def top_level(self) -> dict[str, int]:
        """Return the maximum of each size over the layers; engines size their scratch from it.

        A size that no layer has is left out: the config's own stays. Head counts keep their dense
        values where they state the width of a head, which is hidden size / heads.
        """
        keyed = [self._keyed(layer) for layer in self.layers]
        top = {key: max(sizes.get(key, 0) for sizes in keyed) for one in keyed for key in one}
        top |= self._shared_multiple
        if not self._states_head_width:
            heads = self.hidden_size // max(layer.head_dim for layer in self.layers)
            ratio = max(layer.queries_per_kv for layer in self.layers) or 1
            own = {key: self.family.keys.get(key, key) for key in (HEADS, KV_HEADS)}
            top[own[HEADS]] = heads
            if self.family.has_kv_heads:
                top[own[KV_HEADS]] = max(heads // ratio, top[own[KV_HEADS]])
        return {key: size for key, size in top.items() if size}

    def per_layer(self, top: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each layer's differences from the top level, under zero-padded layer numbers."""
        digits = len(str(len(self.layers) - 1))
        heads = {self.family.keys.get(key, key) for key in (HEADS, KV_HEADS)}
        for index, layer in enumerate(self.layers):
            sizes = self._keyed(layer)
            # A width of 0 is a skipped block, but a mixture may lose its shared expert alone.
            kept_zeros = sizes.keys() - heads if layer.experts else ()
            entry: dict[str, Any] = {
                key: size
                for key, size in sizes.items()
                if size != top.get(key) and (size or key in kept_zeros)
            }
            if layer.skipped_blocks:
                entry[SKIP] = list(layer.skipped_blocks)
            if entry:
                yield str(index).zfill(digits), entry

    @property
    def _shared_multiple(self) -> dict[str, int]:
        """The widest shared expert as a multiple of the widest other one, where it is one."""
        mixtures, mixture = [one for one in self.layers if one.experts], self.family.mixture
        if mixture is None or mixture.shared_multiple is None or not mixtures:
            return {}
        units = max(max(one.experts) for one in mixtures)
        shared = max(one.shared_units for one in mixtures)
        is_multiple = units and shared % units == 0
        return {mixture.shared_multiple: shared // units} if is_multiple else {}

    @property
    def _states_head_width(self) -> bool:
        """Say whether the config has `head_dim`: it must unless that is hidden size / heads."""
        return self.family.has_stated_head_width or self.hidden_size != self.norm_size

    def _keyed(self, shape: LayerShape) -> dict[str, int]:
        sizes = {
            HEADS: shape.num_heads,
            KV_HEADS: shape.num_kv_heads,
            HEAD_DIM: shape.head_dim,
            **self._units(shape),
        }
        if shape.is_recurrent:
            heads = {VALUE_HEADS: shape.num_heads, KEY_HEADS: shape.num_kv_heads}
            return {**heads, **self._units(shape)}
        if not self._states_head_width:
            del sizes[HEAD_DIM]
        if not self.family.has_kv_heads:
            del sizes[KV_HEADS]
        return {self.family.keys.get(key, key): size for key, size in sizes.items()}

    def _units(self, shape: LayerShape) -> dict[str, int]:
        mixture = self.family.mixture
        if mixture is None or not shape.experts:
            return {UNITS: shape.mlp_units}
        is_stated = mixture.shared and not mixture.shared_multiple
        shared = {SHARED_UNITS: shape.shared_units} if is_stated else {}
        sizes = {EXPERTS: len(shape.experts), TOP_K: shape.top_k}
        return sizes | {mixture.units: max(shape.experts)} | shared


def uneven_experts(layers: Sequence[LayerShape]) -> dict[int, tuple[int, ...]]:
    """Return the widths of experts, by layer, where they differ in their layer."""
    return {i: shape.experts for i, shape in enumerate(layers) if len(set(shape.experts)) > 1}


def narrower_windows(windows: Sequence[int | None]) -> dict[int, int]:
    """Return the windows, by layer, that are narrower than the widest, which a config states."""
    widest = max((window for window in windows if window is not None), default=0)
    return {i: window for i, window in enumerate(windows) if window not in (None, widest)}


def unstated_shared(family: Family, layers: Sequence[LayerShape]) -> dict[int, int]:
    """Return the widths of shared experts, by layer, that a config of the family cannot state."""
    if family.mixture is None or family.mixture.shared_multiple is None:
        return {}
    return {i: shape.shared_units for i, shape in enumerate(layers) if shape.experts}


def sgate_config(stock: Mapping[str, Any], sizes: LayerSizes, block: SgateBlock) -> dict[str, Any]:
    """Return the config of uneven layers: a stock one with these top-level sizes, and our parts."""
    names = stock.get("architectures") or ()
    return {
        **stock,
        "model_type": SGATE_MODEL_TYPE,
        "architectures": [f"{SGATE_CLASS_PREFIX}{name}" for name in names],
        PER_LAYER: dict(sizes.per_layer(stock)),
        BLOCK: block.to_json(),
    }


def stock_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without our parts, as its stock family spells it; sizes stay as they are."""
    stock = {key: value for key, value in config.items() if key not in (PER_LAYER, BLOCK)}
    if config.get("model_type") == SGATE_MODEL_TYPE:
        stock["model_type"] = SgateBlock.read(config).base_model_type
        names = config.get("architectures") or ()
        stock["architectures"] = [name.removeprefix(SGATE_CLASS_PREFIX) for name in names]
    return stock


def stored_block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the block `sgate` as it is stored, unchecked; an empty one where there is none."""
    block = config.get(BLOCK) or {}
    return block if isinstance(block, Mapping) else {}


def stored_family(config: Mapping[str, Any]) -> Any:
    """Return the name that a config gives its family, unchecked."""
    model_type = config.get("model_type")
    return stored_block(config).get("family") if model_type == SGATE_MODEL_TYPE else model_type


def layer_shapes(
    dense: Sequence[LayerShape], family: Family, config: Mapping[str, Any], source: str
) -> Iterator[LayerShape]:
    """Apply `per_layer_config` (zero-padded string keys, flat HF names, `skip`) to each layer."""
    overrides = {int(key): value for key, value in (config.get(PER_LAYER) or {}).items()}
    unknown = sorted(set(overrides) - set(range(len(dense))))
    if unknown:
        raise CheckpointError(f"{source}: {PER_LAYER} names layers {unknown} of {len(dense)}")
    block = SgateBlock.read(config)
    uneven, shared = block.expert_units, block.shared_units
    mixtures = {i for i, shape in enumerate(dense) if shape.experts}
    for name, layers in (("expert_units", uneven), ("shared_units", shared)):
        if stray := sorted(set(layers) - mixtures):
            raise CheckpointError(f"{source}: sgate.{name} names layers {stray}, not mixtures")
    for index, shape in enumerate(dense):
        get = _LayerReader(overrides.get(index) or {}, family, f"{source}: {PER_LAYER}[{index}]")
        own = (VALUE_HEADS, KEY_HEADS) if shape.is_recurrent else (HEADS, KV_HEADS)
        heads, skip = get(own[0], shape.num_heads), get.skipped
        kv_heads = get(own[1], shape.num_kv_heads) if family.has_kv_heads else heads
        found = replace(
            shape,
            num_heads=0 if ATTENTION in skip else heads,
            num_kv_heads=0 if ATTENTION in skip else kv_heads,
            head_dim=shape.head_dim if shape.is_recurrent else get(HEAD_DIM, shape.head_dim),
            mlp_units=0 if MLP in skip else get(UNITS, shape.mlp_units),
            experts=(),
            top_k=0,
        )
        has_experts = shape.experts and MLP not in skip
        if has_experts:
            found = replace(found, mlp_units=shared.get(index, get.shared_units(shape)))
            yield _with_experts(found, shape, get, uneven.get(index))
        else:
            yield found


class _LayerReader:
    """The sizes of one entry of `per_layer_config`, by our names."""

    def __init__(self, values: Mapping[str, Any], family: Family, source: str) -> None:
        self.mixture, self._keys, self.source = family.mixture, family.keys, source
        self._get = ConfigReader(values, source)

    def __call__(self, key: str, default: int) -> int:
        return self._get.integer(self._keys.get(key, key), default)

    def shared_units(self, dense: LayerShape) -> int:
        """Return the width of a mixture's shared expert."""
        has_one = self.mixture is not None and self.mixture.shared is not None
        return self(SHARED_UNITS, dense.shared_units) if has_one else 0

    @property
    def skipped(self) -> Sequence[str]:
        return self._get(SKIP) or ()


def _with_experts(
    found: LayerShape, dense: LayerShape, get: _LayerReader, uneven: tuple[int, ...] | None
) -> LayerShape:
    """Return a layer's shape with its experts besides the shared one, whose units `found` has.

    `uneven` are their widths where these differ.
    """
    assert get.mixture is not None, "only layers of such a family have experts"
    width, count = get(get.mixture.units, dense.experts[0]), get(EXPERTS, len(dense.experts))
    experts, top_k = uneven or (width,) * count, get(TOP_K, dense.top_k)
    if len(experts) != count or max(experts) != width or not 0 < top_k <= count:
        raise CheckpointError(
            f"{get.source}: {count} experts of up to {width} units, of which a token uses {top_k}, "
            f"and the block sgate has {len(experts)} of up to {max(experts)}; convert the base "
            "checkpoint again"
        )
    units = sum(experts) + found.mlp_units
    return replace(found, mlp_units=units, experts=experts, top_k=top_k)
