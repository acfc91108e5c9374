"""A folder's outline: its config and headers, which are read in seconds for a model of any size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE, stored_family
from sgate_serve.architecture.wholes import WHOLES
from sgate_serve.checkpoint.location import find_folder
from sgate_serve.checkpoint.outline.config import AnyConfig
from sgate_serve.checkpoint.outline.faults import grouped
from sgate_serve.checkpoint.outline.layers import layer_faults, stack_of
from sgate_serve.checkpoint.outline.mixtures import Mixture, mixture_faults, mixtures_of
from sgate_serve.checkpoint.outline.packed import packed_faults
from sgate_serve.checkpoint.outline.tables import table_faults
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo, is_name
from sgate_serve.checkpoint.weights_files import read_headers
from sgate_serve.json_fields import read_json


@dataclass(frozen=True)
class Outline:
    """A model folder of any family, pruned by any tool."""

    folder: Path
    config: AnyConfig
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, location: str | Path) -> "Outline":
        """Read a folder; raise CheckpointError for files that are missing or malformed."""
        folder = find_folder(location)
        stored = read_json(folder / CONFIG_FILE)
        return cls(folder, AnyConfig.of(stored), read_headers(folder))

    @cached_property
    def mixtures(self) -> Mapping[str, Mixture]:
        """The mixtures of experts, by the names of their blocks."""
        return mixtures_of(self.tensors)

    @cached_property
    def stack(self) -> Mapping[int, list[TensorInfo]]:
        """The tensors of each layer of the language model."""
        return stack_of(self.tensors)

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """Where the config and the headers contradict themselves or each other.

        Models with an encoder and a decoder have two stacks, and are not looked at. The mixtures of
        our own folders may be uneven, and our reader checks them.
        """
        if self.config.values.get("is_encoder_decoder"):
            return ()
        is_own = self.config.values.get("model_type") == SGATE_MODEL_TYPE
        found = [
            *layer_faults(self.config, self.stack),
            *(() if is_own else mixture_faults(self.config, self.mixtures)),
            *packed_faults(self.config, self.tensors),
            *table_faults(self.config, self.tensors),
        ]
        return tuple(grouped(found))

    @property
    def is_supported(self) -> bool:
        """Whether the family is one that converts; its folder may still not load."""
        name = stored_family(self.config.values)
        return isinstance(name, str) and (name in FAMILIES or name in WHOLES)

    @property
    def model_type(self) -> str:
        found = self.config.values.get("model_type")
        return found if isinstance(found, str) and is_name(found) else brief(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "bytes_stored": sum(info.num_bytes for info in self.tensors.values()),
            "layers": len(self.stack),
            "experts": {block: mixture.size for block, mixture in self.mixtures.items()},
            "faults": list(self.faults),
        }
