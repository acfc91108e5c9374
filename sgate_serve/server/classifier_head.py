"""A classifier's labels and problem type, which turn its logits into scores."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class ClassifierHead:
    """The label names, in the order of the logits, and how the logits become scores."""

    names: tuple[str, ...]
    problem_type: ProblemType

    @classmethod
    def of(cls, names: tuple[str, ...], problem_type: Any, source: str) -> "ClassifierHead":
        """Join a config's label names with its `problem_type`, or transformers' default for it.

        Without `problem_type` one label means regression, and several are mutually exclusive.
        Raises CheckpointError naming `source` if the problem type is unknown.
        """
        if problem_type is None:
            problem_type = "regression" if len(names) == 1 else "single_label_classification"
        if problem_type not in get_args(ProblemType):
            raise CheckpointError(
                f"{source}: problem_type is {problem_type!r}; it must be one of "
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
