"""Importance scores, from an earlier run with the same base and data where there was one.

Neither target nor recovery shapes them, so several targets need only one pass over the data.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.checkpoint.cached_json import read_cached, write_cached
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.progress import activity
from sgate_serve.training import remembered
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite
from sgate_serve.training.processes import agreed, processes
from sgate_serve.training.tasks.training_data import TrainingData
from sgate_serve.training.train_options import TrainOptions

SCORES_DIR = "scores"
# Of the options, those that shape scores, besides the method.
SHAPING = ("gates", "task", "batch_size", "seed")


def known_scores(
    method: str,
    sites: Sequence[PrunableSite],
    base: Checkpoint,
    data: TrainingData,
    options: TrainOptions,
    compute: Callable[[], GateValues],
) -> GateValues:
    """Return the scores of `sites` by `method`, computed unless an earlier run did."""
    file = None
    if processes().is_main_process:
        others = {"method": method, **{name: getattr(options, name) for name in SHAPING}}
        file = remembered.file_of(SCORES_DIR, base.digest, data, options, others)
    known = agreed(None if file is None else _read(file, sites))
    if known is not None:
        with activity(f"scores ({method}), as an earlier run found them"):
            return known
    with activity(f"scoring ({method})"):
        scores = agreed(compute())
    if file is not None:
        write_cached(file, {key: values.tolist() for key, values in scores.items()})
    return scores


def _read(file: Path, sites: Sequence[PrunableSite]) -> GateValues | None:
    """Return the scores in a file of the cache, or None if it is missing or damaged."""
    stored: Any = read_cached(file)
    wanted = {site.gate.key: site.gate.num_gates for site in sites}
    if not isinstance(stored, dict) or stored.keys() != wanted.keys():
        return None
    try:
        scores = {key: np.array(values, np.float32) for key, values in stored.items()}
    except (TypeError, ValueError):
        return None
    are_whole = all(scores[key].shape == (size,) for key, size in wanted.items())
    return scores if are_whole and all(map(_is_finite, scores.values())) else None


def _is_finite(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all())
