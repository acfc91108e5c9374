"""The classification task, which includes regression: labelled texts and a head."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

from sgate_serve.architecture.family import CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import HELD_OUT_SHARE
from sgate_serve.data.examples import ExampleEncoder, Labels
from sgate_serve.data.hub import HELD_OUT
from sgate_serve.data.metrics import Metrics
from sgate_serve.data.records import Example, read_examples
from sgate_serve.errors import TrainingError
from sgate_serve.models.loading import loaded_by, new_classifier
from sgate_serve.progress import counted
from sgate_serve.training.tasks.evaluate import classifier_metrics
from sgate_serve.training.tasks.frozen_model import frozen_model
from sgate_serve.training.tasks.training_data import Sample, Samples, TrainingData
from sgate_serve.training.train_options import TrainOptions

SINGLE_LABEL, REGRESSION = "single_label_classification", "regression"


class ClassificationTask:
    """Texts of at most --seq-len tokens; a base without a head gets a random one from the seed."""

    def __init__(self, base: Checkpoint, options: TrainOptions) -> None:
        train, held_out = read_split(options)
        self.needs_head = base.spec.task != CLASSIFICATION
        self.labels = (
            Labels.of_examples(train, options.data) if self.needs_head else Labels.of_model(base)
        )
        self.num_labels = self.labels.num_outputs
        self._has_types = base.spec.num_types > 1
        self._encoder = ExampleEncoder(base, options.seq_len)
        elsewhere = {
            name: read_examples(path, HELD_OUT, options.columns)
            for name, path in options.elsewhere.items()
        }
        self.data = TrainingData(
            self._samples(train),
            self._samples(held_out),
            pad_token(base),
            elsewhere={name: self._samples(part) for name, part in elsewhere.items()},
        )
        total = sum(map(len, (train, held_out, *elsewhere.values())))
        full = self._encoder.num_full
        note = f"{full} of {total} texts fill --seq-len {options.seq_len} or were cut"
        self.notes: tuple[str, ...] = (note,) if full else ()
        self._seed = options.seed

    def open_model(self, base: Checkpoint) -> nn.Module:
        """Load a frozen classifier in fp32, on the GPU if there is one; a new head is random."""
        options: dict[str, Any] = {}
        if self.needs_head:
            names = self.labels.names or ("LABEL_0",)
            options = {
                "num_labels": len(names),
                "id2label": dict(enumerate(names)),
                "label2id": {name: index for index, name in enumerate(names)},
                "problem_type": SINGLE_LABEL if self.labels.names else REGRESSION,
            }
        set_seed(self._seed)
        if base.whole is None:
            model = loaded_by(AutoModelForSequenceClassification.from_pretrained, base, **options)
        else:
            model = new_classifier(base, options).eval()
        model.config.pad_token_id = self.data.pad_token
        return frozen_model(model, base)

    def metrics(self, model: nn.Module, samples: Samples) -> Metrics:
        return classifier_metrics(model, samples, self.data.pad_token)

    def _samples(self, examples: Sequence[Example]) -> Samples:
        return Samples([self._sample(example) for example in counted(examples, "example")])

    def _sample(self, example: Example) -> Sample:
        encoded = self._encoder.encode(example)
        ids = torch.tensor(encoded.ids)
        sample = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor(self.labels.number(example)),
        }
        if self._has_types:
            sample["token_type_ids"] = torch.tensor(encoded.token_types or [0] * len(ids))
        return sample


def read_split(options: TrainOptions) -> tuple[list[Example], list[Example]]:
    """Return (training, held-out) examples; without --eval-data a random tenth is held out.

    Raises TrainingError for unreadable data or a single example.
    """
    examples = read_examples(options.data, columns=options.columns)
    if options.held_out_source is not None:
        return examples, read_examples(options.held_out_source, HELD_OUT, options.columns)
    if len(examples) < 2:
        raise TrainingError(f"{options.data} has a single example; give more, or use --eval-data")
    random.Random(options.seed).shuffle(examples)
    num_held_out = max(1, round(len(examples) * HELD_OUT_SHARE))
    return examples[num_held_out:], examples[:num_held_out]


def pad_token(base: Checkpoint) -> int:
    """Return the id that pads batches: the config's pad token, else its end token, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = base.config.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        # Negative ids mean that there is no such token.
        if value is not None and value >= 0:
            return int(value)
    return 0
