"""A classifier's labels and problem type, which turn its logits into scores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sgate_serve.errors import CheckpointError

# What turns the logit of a cross-encoder into its score.
Activation = Literal["sigmoid", "identity"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

ACTIVATIONS: Mapping[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity"}


def activation_of(config: Mapping[str, Any], source: str) -> Activation | None:
    """Return the activation of a cross-encoder's config, None if it has none.

    A `problem_type` counts for more, and then the key of today's sentence-transformers, as in vLLM.
    Raises CheckpointError naming `source` for one that is not supported.
    """
    problem_type = config.get("problem_type")
    if problem_type is not None:
        return "identity" if problem_type == "regression" else "sigmoid"
    own = config.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, Mapping) else None
    name = config.get("sbert_ce_default_activation_function") if name is None else name
    if name is None:
        return None
    kind = str(name).rpartition(".")[2]
    if kind not in ACTIVATIONS:
        raise CheckpointError(
            f"{source}: the activation of this cross-encoder is {name!r}; it must be one of "
            f"{', '.join(ACTIVATIONS)}, or absent"
        )
    return ACTIVATIONS[kind]


@dataclass(frozen=True)
class ClassifierHead:
    """The label names, in the order of the logits, and how the logits become scores.

    `activation` is that of a cross-encoder, if its config has one.
    """

    names: tuple[str, ...]
    problem_type: ProblemType
    activation: Activation | None = None

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        problem_type: Any,
        source: str,
        activation: Activation | None = None,
    ) -> "ClassifierHead":
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
        return cls(names, problem_type, activation)

    def relevance(self, logits: NDArray[np.float32]) -> float:
        """Return the score of a pair for the one logit [1] of a cross-encoder.

        It is the sigmoid, as in sentence-transformers, unless the config has another `activation`.
        """
        if self.activation == "identity":
            return float(logits[0])
        return float(_sigmoid(logits)[0])

    def bare(self) -> "ClassifierHead":
        """Return the head whose scores are the logits."""
        return replace(self, problem_type="regression", activation="identity")

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
                return _sigmoid(logits)
            case "regression":
                return logits


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # In the form that cannot overflow for the sign of each logit.
    powers = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers))
