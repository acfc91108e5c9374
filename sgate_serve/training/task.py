"""What `--task` chooses: the data, how the model is opened, and what it is scored on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import nn

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.metrics import Scores
from sgate_serve.training.classification import ClassificationTask
from sgate_serve.training.language import LanguageTask
from sgate_serve.training.samples import Data
from sgate_serve.training.train_options import TrainOptions


class Task(Protocol):
    """`needs_head` says that the base has none for this task, of `num_labels` outputs; `notes` are
    for the user."""

    data: Data
    needs_head: bool
    num_labels: int
    notes: tuple[str, ...]

    def open_model(self, folder: Path) -> nn.Module:
        """Load a folder in fp32, frozen, on the best device."""

    def scores(self, model: nn.Module) -> Scores:
        """Score a model on the held-out data."""


TASKS: Mapping[str, Callable[[Checkpoint, TrainOptions], Task]] = {
    CAUSAL_LM: LanguageTask,
    CLASSIFICATION: ClassificationTask,
}
