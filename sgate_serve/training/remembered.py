"""What one run computes and a later one with the same inputs takes from the user's cache.

A cache that cannot be read or written costs a repetition, not the run.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.writer import replace_text
from sgate_serve.environment import cache_dir, library_versions
from sgate_serve.training.precision import best_device, precision_of
from sgate_serve.training.processes import processes
from sgate_serve.training.tasks.training_data import TrainingData
from sgate_serve.training.train_options import TrainOptions


def file_of(
    kind: str, digest: str, data: TrainingData, options: TrainOptions, others: Mapping[str, Any]
) -> Path:
    """Return where the cache keeps a result: a hash of everything that shapes it.

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
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / kind / f"{name}.json"


def read(file: Path) -> Any:
    """Return the value in a file of the cache, or None if it is missing or no JSON."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None


def write(file: Path, value: Any) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(value) + "\n")
