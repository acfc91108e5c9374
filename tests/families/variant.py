"""What a model of the zoo is built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sgate_serve.architecture.families import FAMILIES

Task = Literal["causal-lm", "classification", "base"]


@dataclass(frozen=True)
class Variant:
    """A model to build: `name` says which feature is on, `config` holds transformers' fields."""

    family: str
    name: str
    task: Task
    config: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def has_experts(self) -> bool:
        mixture = FAMILIES[self.family].mixture
        return mixture is not None and (not mixture.switch or bool(self.config.get(mixture.switch)))

    @property
    def is_recurrent(self) -> bool:
        return FAMILIES[self.family].recurrence is not None
