"""`train`: from a dense base and data to a gates folder. Heavy imports wait until it is called."""

import os

from sgate_serve.environment import check_installed
from sgate_serve.errors import TrainingError
from sgate_serve.training.options import TrainOptions, TrainResult

PACKAGES = ("torch", "transformers", "peft", "accelerate", "sklearn", "scipy")


def train(options: TrainOptions) -> TrainResult:
    """Find gates for the base, recover, and write the gates folder `options.out`.

    With `dry_run` nothing is written, and the metrics are the outline of the run. Raises
    TrainingError for missing packages, bad options or data, an `out` that is not empty, a target
    that no gates reach, a loss that is no number, too little memory, or several processes;
    CheckpointError for a bad base.
    """
    check_installed("training needs", PACKAGES, "train", TrainingError)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(
            "this release trains in one process, found several: run sgate train alone"
        )
    options.check()
    from sgate_serve.training.pipeline import run_training

    return run_training(options)
