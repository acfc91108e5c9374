"""The tasks of `--task`: their interface, and the table of implementations."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import nn

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.metrics import Metrics
from sgate_serve.training.tasks.causal_lm import CausalLMTask
from sgate_serve.training.tasks.classification import ClassificationTask
from sgate_serve.training.tasks.training_data import Samples, TrainingData
from sgate_serve.training.train_options import TrainOptions


class TrainingTask(Protocol):
    """The data of a task, how it opens a model, and how it measures one.

    `needs_head` says that the base lacks the head of this task, which has `num_labels` outputs.
    `notes` are shown to the user.
    """

    data: TrainingData
    needs_head: bool
    num_labels: int
    notes: tuple[str, ...]

    def open_model(self, base: Checkpoint) -> nn.Module:
        """Load a frozen model in fp32, on the GPU if there is one."""

    def metrics(self, model: nn.Module, samples: Samples) -> Metrics:
        """Measure a model on held-out samples."""


TASKS: Mapping[str, Callable[[Checkpoint, TrainOptions], TrainingTask]] = {
    CAUSAL_LM: CausalLMTask,
    CLASSIFICATION: ClassificationTask,
}
