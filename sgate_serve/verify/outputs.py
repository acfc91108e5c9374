"""What a model puts out, in words: a report about a classifier must not speak of tokens."""

from dataclasses import dataclass

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.architecture.spec import ModelSpec


@dataclass(frozen=True)
class Outputs:
    """The name of one output, of what is chosen by the largest, if anything is, and for what."""

    name: str
    choice: str | None = None
    per: str = ""


TOKENS = Outputs("logit", "teacher-forced tokens", "token")
CLASSES = Outputs("logit", "predicted classes", "text")
VALUES = Outputs("value")
HIDDEN_STATES = Outputs("hidden state")


def outputs_of(spec: ModelSpec) -> Outputs:
    """Return what `logits` of a model on any engine is about."""
    if spec.task == CAUSAL_LM:
        return TOKENS
    if spec.task != CLASSIFICATION:
        return HIDDEN_STATES
    return CLASSES if spec.num_labels > 1 else VALUES
