"""Checks of the options of a run that depend on whether its base is a mixture of experts."""

from sgate_serve.architecture.family import DOWN
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.training.train_options import (
    BIAS,
    EXPERTS,
    GATES,
    ROW_COL,
    WANDA,
    TrainOptions,
)


def check_mixture(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError for experts that a base lacks, or an option that experts do not have."""
    if not any(layer.experts for layer in base.spec.layers):
        if options.gates == EXPERTS:
            raise TrainingError(
                f"--gates experts: {base.folder} is not a mixture of experts; use --gates coupled"
            )
        return
    if options.gates == ROW_COL:
        raise TrainingError(
            f"--gates row-col: {base.folder} is a mixture of experts, whose rows and columns are "
            "not gated yet; use --gates coupled or experts"
        )
    if options.target_speedup is not None:
        raise TrainingError(
            f"--target-speedup: {base.folder} is a mixture of experts, whose blocks are not timed "
            "yet; give --target instead"
        )
    if options.method == WANDA and options.mask is None:
        raise TrainingError(
            f"--method wanda averages a linear's inputs over all tokens, and {base.folder} is a "
            "mixture, whose experts see some of them; use --method fisher"
        )
    trains_biases = options.method == GATES and options.gate_tuning == BIAS
    has_biases = DOWN in base.spec.biased_roles
    if (options.recovery == BIAS or trains_biases) and not has_biases:
        flag = "--recovery" if options.recovery == BIAS else "--gates-with"
        raise TrainingError(
            f"{flag} bias: the experts of {base.folder} have no biases, and none can be added; use "
            f"{flag} lora"
        )
