"""Opens the base of a run, and checks the options that depend on it. Without torch, so at once."""

from sgate_serve.architecture.family import CLASSIFICATION, DOWN
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.architecture.shared_keys import NUM_SHARED
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


def open_base(options: TrainOptions) -> Checkpoint:
    """Open the dense model to train; raise TrainingError for one that the options do not fit.

    Raises CheckpointError for a folder that is no model.
    """
    base = Checkpoint.open(options.base)
    base.check_unquantized()
    if base.config.get("model_type") == SGATE_MODEL_TYPE:
        raise TrainingError(f"{base.folder} is already pruned; train on its dense base")
    if options.seq_len > base.spec.max_positions:
        raise TrainingError(
            f"--seq-len {options.seq_len}: {base.folder} has {base.spec.max_positions} positions"
        )
    if options.task == CLASSIFICATION and CLASSIFICATION not in base.spec.family.tasks:
        raise TrainingError(
            f"--task {CLASSIFICATION}: {base.folder} is of family {base.spec.family.name}, of "
            "which transformers has no classifier; give a base of another family"
        )
    _check_timed(base, options)
    _check_mixture(base, options)
    _check_recurrent(base, options)
    _check_shared_keys(base)
    return base


def _check_mixture(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError for experts that a base lacks, or an option that experts do not have."""
    if not base.spec.has_experts:
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


def _check_timed(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError for a target of speed where blocks are of a kind that is not timed."""
    spec = base.spec
    kinds = {
        "is a mixture of experts": spec.has_experts,
        "has recurrent layers": spec.has_recurrent_layers,
        "has heads of two widths": spec.family.has_heads_by_type,
    }
    if options.target_speedup is not None and any(kinds.values()):
        what = next(kind for kind, has in kinds.items() if has)
        raise TrainingError(
            f"--target-speedup: {base.folder} {what}, whose blocks are not timed yet; give "
            "--target instead"
        )


def _check_recurrent(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError for an option that needs every layer to attend."""
    if base.spec.has_recurrent_layers and options.gates == ROW_COL:
        raise TrainingError(
            f"--gates row-col: {base.folder} has recurrent layers, whose rows and columns are not "
            "gated yet; use --gates coupled"
        )


def _check_shared_keys(base: Checkpoint) -> None:
    """Raise TrainingError where a KV head goes only with its query heads of several layers."""
    if not all(layer.has_keys for layer in base.spec.layers):
        raise TrainingError(
            f"{base.folder}: layers read the KV heads of earlier ones ({NUM_SHARED}), and sgate "
            "train has no gates for such groups yet; convert it with a mask of your own"
        )
