"""Checks of the options of a run that recurrent layers of its base do not support."""

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.training.train_options import ROW_COL, TrainOptions


def check_recurrent(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError for an option that needs every layer to attend."""
    if not base.spec.family.recurrent_layers:
        return
    if options.gates == ROW_COL:
        raise TrainingError(
            f"--gates row-col: {base.folder} has recurrent layers, whose rows and columns are not "
            "gated yet; use --gates coupled"
        )
    if options.target_speedup is not None:
        raise TrainingError(
            f"--target-speedup: {base.folder} has recurrent layers, whose blocks are not timed "
            "yet; give --target instead"
        )
