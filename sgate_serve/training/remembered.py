"""Where the user's cache keeps what one run computes and a later one with the same inputs takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.cached_json import cached_file
from sgate_serve.environment import library_versions
from sgate_serve.training.precision import best_device, precision_of
from sgate_serve.training.processes import processes
from sgate_serve.training.tasks.training_data import TrainingData
from sgate_serve.training.train_options import TrainOptions


def file_of(
    kind: str, digest: str, data: TrainingData, options: TrainOptions, others: Mapping[str, Any]
) -> Path:
    """Return the file of a result: its name is a hash of everything that shapes it.

    `digest` is that of the base, `others` are the options that shape this kind of result.
    """
    key = {
        "base": digest,
        "data": data.digest,
        "others": others,
        "precision": precision_of(options),
        "device": best_device().type,
        "processes": processes().num_processes,
        "versions": library_versions(),
    }
    return cached_file(kind, key)
