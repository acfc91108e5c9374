"""A classifier's labels and problem type, from config.json, which turn its logits into scores."""

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
class ClassifierHead:
    """The label names, in the order of the logits, and how the logits become scores."""

    names: tuple[str, ...]
    problem_type: ProblemType

    @classmethod
    def load(cls, folder: Path) -> "ClassifierHead":
        """Read config.json, with the defaults of transformers.

        Without `problem_type` one label means regression, and several are mutually exclusive.
        Raises CheckpointError if the labels are not numbered from 0 or the problem type is unknown.
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
        """Return the scores [labels] for logits [labels].

        They are the softmax for mutually exclusive labels, the sigmoid of each for independent
        ones, and the logits themselves for a regression.
        """
        match self.problem_type:
            case "single_label_classification":
                powers = np.exp(logits - logits.max())
                return np.asarray(powers / powers.sum())
            case "multi_label_classification":
                # The sigmoid in the form that cannot overflow for the sign of each logit.
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
            f"{path}: id2label is {names!r}; it must map the numbers from 0 to label names"
        )
    return tuple(str(names[key]) for key in keys)
