"""The scores of one stage of a run: on the held-out data, and on the data of further names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from sgate_serve.data.metrics import Metrics, MetricValue
from sgate_serve.plan import Masks
from sgate_serve.progress import activity
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.tasks.training_task import TrainingTask


@dataclass(frozen=True)
class Scores:
    """Metrics on the held-out data, and `elsewhere` by the name of the data."""

    held_out: Metrics
    elsewhere: Mapping[str, Metrics]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        elsewhere = {name: _metrics(part) for name, part in values["elsewhere"].items()}
        return cls(_metrics(values["held_out"]), elsewhere)


def measure(
    task: TrainingTask, model: nn.Module, stage: str, masks: Masks = MappingProxyType({})
) -> Scores:
    """Measure `model` under `masks` on everything that is held out; `stage` is shown."""
    data = task.data
    with masked_by(model, masks):
        with activity(f"measuring the {stage} model"):
            held_out = task.metrics(model, data.held_out)
        elsewhere = {}
        for name, samples in data.elsewhere.items():
            with activity(f"measuring the {stage} model on {name}"):
                elsewhere[name] = task.metrics(model, samples)
    return Scores(held_out, elsewhere)


def scores_json(stages: Mapping[str, Scores]) -> dict[str, Any]:
    """Return `scores` by stage and `scores_elsewhere` by name and stage, for metrics.json."""
    values = {stage: scores.to_json() for stage, scores in stages.items()}
    names = next(iter(stages.values())).elsewhere
    return {
        "scores": {stage: each["held_out"] for stage, each in values.items()},
        "scores_elsewhere": {
            name: {stage: each["elsewhere"][name] for stage, each in values.items()}
            for name in names
        },
    }


def _metrics(values: Mapping[str, Any]) -> Metrics:
    return {name: MetricValue(**value) for name, value in values.items()}
