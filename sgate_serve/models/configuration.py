"""Configs of pruned models: a stock family's config, per-layer sizes, and the `sgate` block.

The per-layer sizes are transformers' own `per_layer_config` (heterogeneous configs, 5.16 on).
Top-level sizes are the maximum over the layers; stock modelling code may read them.
"""

from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PreTrainedConfig

from sgate_serve.architecture.config import family_of
from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import Family
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE


class LayerConfigs:
    """The configs of single layers, by number or by type.

    transformers' own refuse a type whose layers differ, and classes ask for it to rotate by: what
    rotation needs, the width of heads, is the same in all layers of a type.
    """

    def __init__(self, config: Any, by_number: Any) -> None:
        self._config, self._by_number = config, by_number

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._by_number)

    def __getitem__(self, key: Any) -> Any:
        return self._by_number[self._config.layer_types.index(key) if isinstance(key, str) else key]


class UnevenConfigMixin:
    """Lets stock modelling code build at the top-level sizes; `shrink` then narrows each layer."""

    allow_global_per_layer_attribute_access = True

    def __getattribute__(self, key: str) -> Any:
        # transformers warns at each top-level read of a per-layer size; here it is intended.
        attribute_map = object.__getattribute__(self, "attribute_map")
        return object.__getattribute__(self, attribute_map.get(key, key))

    @property
    def per_layer_config(self) -> Any:
        return LayerConfigs(self, PreTrainedConfig.per_layer_config.fget(self))

    @per_layer_config.setter
    def per_layer_config(self, sizes: Any) -> None:
        PreTrainedConfig.per_layer_config.fset(self, sizes)

    def validate_architecture(self) -> None:
        """Accept head counts that do not divide the hidden size, for head_dim is explicit."""


def uneven_config(family: Family) -> type[PreTrainedConfig]:
    """Make the family's config class for uneven layers, with the `sgate` block as a field."""
    stock = getattr(transformers, family.config_class)
    fields = {
        "model_type": SGATE_MODEL_TYPE,
        "sgate": None,
        "__annotations__": {"sgate": dict | None},
        "__module__": __name__,
        "__doc__": f"A {stock.__name__} whose layers have their own widths.",
    }
    made: type[PreTrainedConfig] = type(
        f"SGate{stock.__name__}", (UnevenConfigMixin, stock), fields
    )
    return made


CONFIGS = {name: uneven_config(family) for name, family in FAMILIES.items()}
# Pickle looks classes up by name in the module that they name.
globals().update({made.__name__: made for made in CONFIGS.values()})


class SGateConfig(PreTrainedConfig):
    """The config class of `model_type: sgate`; loading returns the family's own class."""

    model_type = SGATE_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PreTrainedConfig:
        """Return the config of the family in the block `sgate`; raise CheckpointError if none."""
        family = family_of(config_dict, str(config_dict.get("_name_or_path") or CONFIG_FILE))
        return CONFIGS[family.name].from_dict(config_dict, **kwargs)
