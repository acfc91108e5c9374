"""The labels of a classifier and what its logits mean, read from config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
DEFAULT_NUM_LABELS = 2


@dataclass(frozen=True)
class Labels:
    """Label names in the order of the logits."""

    names: tuple[str, ...]
    problem_type: ProblemType

    @classmethod
    def load(cls, folder: Path) -> "Labels":
        """Read config.json, with the defaults of transformers.

        Without `problem_type` one label is a regression and several exclude each other. Raises
        CheckpointError if the labels are not numbered from 0 or the problem type is unknown.
        """
        path = folder / "config.json"
        config = read_json(path)
        names = _names(config, path)
        problem_type: Any = config.get("problem_type")
        if problem_type is None:
            problem_type = "regression" if len(names) == 1 else "single_label_classification"
        if problem_type not in get_args(ProblemType):
            raise CheckpointError(
                f"{path}: problem_type is {problem_type!r}; it must be one of "
                f"{', '.join(get_args(ProblemType))}, or absent"
            )
        return cls(names, problem_type)

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what a classifier says of each label: from its logits [labels], of that shape.

        Probabilities that add up to 1 where labels exclude each other, one of its own for each
        where they do not, and the values as they are for a regression.
        """
        match self.problem_type:
            case "single_label_classification":
                powers = np.exp(logits - logits.max())
                return np.asarray(powers / powers.sum())
            case "multi_label_classification":
                # Of two ways to write it the one that cannot overflow on this side of zero.
                powers = np.exp(-np.abs(logits))
                return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers))
            case "regression":
                return logits


def _names(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", DEFAULT_NUM_LABELS)
        if type(count) is not int or count < 1:
            raise CheckpointError(f"{path}: num_labels is {count!r}; it must be 1 or more")
        return tuple(f"LABEL_{index}" for index in range(count))
    keys = [str(index) for index in range(len(names))] if isinstance(names, dict) else []
    if not keys or set(names) != set(keys):
        raise CheckpointError(
            f"{path}: id2label is {names!r}; it must map every number from 0 to a label's name"
        )
    return tuple(str(names[key]) for key in keys)
