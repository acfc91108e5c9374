"""Names for a model's outputs, so that a report on a classifier does not speak of tokens."""

from dataclasses import dataclass

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec


@dataclass(frozen=True)
class OutputKind:
    """The name of one output, of the choice that the largest one makes, and of its unit.

    `choice` is None if the outputs are not the logits of a choice.
    """

    name: str
    choice: str | None = None
    per: str = ""


TOKENS = OutputKind("logit", "teacher-forced tokens", "token")
CLASSES = OutputKind("logit", "predicted classes", "text")
VALUES = OutputKind("value")
HIDDEN_STATES = OutputKind("hidden state")


def output_kind(spec: ModelSpec) -> OutputKind:
    """Return the kind of outputs that `logits` of a loaded model returns."""
    if spec.task == CAUSAL_LM:
        return TOKENS
    if spec.task != CLASSIFICATION:
        return HIDDEN_STATES
    return CLASSES if spec.num_labels > 1 else VALUES
