"""`train`: from a dense base and text to a gates folder. Heavy imports wait until it is called."""

from sgate_serve.training.extra import check_extra_installed
from sgate_serve.training.options import TrainOptions, TrainResult


def train(options: TrainOptions) -> TrainResult:
    """Train gates on the frozen base, recover, and write the gates folder `options.out`.

    Raises TrainingError for missing packages, bad options or data, an `out` that is not empty, or
    a target that no gates reach; CheckpointError for a bad base.
    """
    check_extra_installed()
    options.check()
    from sgate_serve.training.causal_lm import train_causal_lm

    return train_causal_lm(options)
