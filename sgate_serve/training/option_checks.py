"""Checks of the options of a training run, before anything is read or written."""

from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.errors import TrainingError, did_you_mean, percent_meant
from sgate_serve.options import check_at_least, flag_of
from sgate_serve.training.train_options import (
    COUPLED,
    DENSE,
    EXPERTS,
    FISHER,
    GATES,
    HEAD,
    JOINT,
    NONE,
    RANDOM,
    REAP,
    ROW_COL,
    SUPPORTED,
    TrainOptions,
)

# What a given mask leaves nothing to decide about.
WITHOUT_MASK = (
    *("target", "target_speedup", "method", "gates", "balance", "gate_block", "dense_steps"),
)
# The scores of whole experts.
OF_EXPERTS = (REAP, FISHER, RANDOM)
OF_SPEED = ("target_engine", "target_precision", "target_phase")


def check_options(options: TrainOptions) -> None:
    """Raise TrainingError for a bad value, or an option without effect."""
    for name, supported in SUPPORTED.items():
        value = getattr(options, name)
        if value not in supported and value != _default_of(name):
            raise TrainingError(
                f"{flag_of(name)} {value}: this release supports {', '.join(supported)}"
                f"{did_you_mean(str(value), supported)}"
            )
    _check_targets(options)
    _check_ranges(options)
    _check_together(options)


def _check_targets(options: TrainOptions) -> None:
    if options.target is not None and not 0 < options.target < 1:
        raise TrainingError(
            f"--target {options.target}: give the fraction of block weights to remove, above 0 "
            f"and below 1{percent_meant(options.target)}"
        )
    if options.target_speedup is not None and not options.target_speedup > 1:
        raise TrainingError(
            f"--target-speedup {options.target_speedup:g}: give how many times as fast the model "
            "is to be, above 1, such as 1.4"
        )


def _check_ranges(options: TrainOptions) -> None:
    share = options.gate_share
    if not 0 < share < 1:
        raise TrainingError(f"--gate-share {share}: must lie between 0 and 1{percent_meant(share)}")
    if not 0 <= options.distill <= 1:
        raise TrainingError(
            f"--distill {options.distill}: must lie between 0 and 1{percent_meant(options.distill)}"
        )
    for name, least in (("steps", 2), ("seq_len", 2), ("dense_steps", 0)):
        check_at_least(name, getattr(options, name), least, TrainingError)
    if options.lora_rank is not None:
        check_at_least("lora_rank", options.lora_rank, 1, TrainingError)
    for name in ("batch_size", "gate_block", "gradient_accumulation"):
        check_at_least(name, getattr(options, name), 1, TrainingError)
    for name in ("eval_blocks", "save_steps"):
        check_at_least(name, getattr(options, name), 1, TrainingError)
    for name in ("gate_learning_rate", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise TrainingError(f"{flag_of(name)} {value}: must be positive")


def _check_together(options: TrainOptions) -> None:
    """Raise TrainingError for an option that another one makes ineffective."""
    if options.method != GATES:
        for name in ("relaxation", "gates_with", "kurtosis"):
            if getattr(options, name) != _default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} is for trained gates: add --method gates, or drop it"
                )
    if options.balance == JOINT and not options.has_costs:
        raise TrainingError(
            "--balance joint compares Fisher scores of coupled gates or experts: use --method "
            "fisher or gates, or drop it"
        )
    if options.task == CAUSAL_LM and options.recovery == HEAD:
        raise TrainingError("--recovery head trains a classifier's head; a causal LM has none")
    if options.no_control and options.method == DENSE:
        raise TrainingError("--no-control: --method dense is its own control; drop one of them")
    if options.no_control and options.recovery == NONE:
        raise TrainingError("--no-control: without recovery there is no control; drop it")
    _check_speed(options)
    _check_mask(options)
    _check_granularity(options)
    _check_eval_data(options)
    _check_columns(options)


def _check_speed(options: TrainOptions) -> None:
    """Raise TrainingError for a speedup that nothing could choose gates by."""
    if options.target_speedup is None:
        for name in OF_SPEED:
            if getattr(options, name) != _default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} is for --target-speedup: add it, or drop {flag_of(name)}"
                )
        return
    if options.target is not None:
        raise TrainingError(
            f"--target {options.target} and --target-speedup {options.target_speedup:g} are two "
            "goals: drop one of them"
        )
    if options.gates != COUPLED or not options.has_costs or not options.is_joint:
        raise TrainingError(
            "--target-speedup weighs seconds against Fisher scores of coupled gates: use "
            "--method fisher or gates, with --gates coupled and --balance joint, or give "
            "--target instead"
        )
    if options.task != CAUSAL_LM and options.target_phase is not None:
        raise TrainingError(
            f"--target-phase {options.target_phase} is for --task {CAUSAL_LM}: drop it, as a "
            "classifier has one phase"
        )


def _check_mask(options: TrainOptions) -> None:
    """Raise TrainingError for an option that a given mask makes ineffective."""
    for name in WITHOUT_MASK:
        if options.mask is not None and getattr(options, name) != _default_of(name):
            raise TrainingError(
                f"{flag_of(name)} has no effect on a given mask: drop it, or --mask"
            )


def _check_granularity(options: TrainOptions) -> None:
    """Raise TrainingError for an option of the other granularity."""
    if options.gates != ROW_COL and options.kurtosis:
        raise TrainingError("--kurtosis is for row-col gates: add --gates row-col, or drop it")
    for name in ("gate_block", "no_refit"):
        if options.gates != COUPLED and getattr(options, name) != _default_of(name):
            raise TrainingError(
                f"{flag_of(name)} is for coupled gates: drop it, or drop --gates {options.gates}"
            )
    if options.gates == EXPERTS and options.method not in (*OF_EXPERTS, DENSE):
        raise TrainingError(
            f"--method {options.method}: whole experts are scored by {', '.join(OF_EXPERTS)}; use "
            "one of these, or --gates coupled"
        )
    if options.method == REAP and options.gates != EXPERTS:
        raise TrainingError(
            "--method reap scores whole experts: add --gates experts, or use --method fisher"
        )


def _check_eval_data(options: TrainOptions) -> None:
    """Raise TrainingError for data to measure elsewhere whose names are the same."""
    named: dict[str, Path] = {}
    for path in options.eval_data[1:]:
        other = named.setdefault(path.stem, path)
        if other is not path:
            raise TrainingError(
                f"--eval-data {other} and {path} would both be reported as {path.stem}; rename "
                "or drop one"
            )


def _check_columns(options: TrainOptions) -> None:
    """Raise TrainingError for a column that the task or the files do not have."""
    if options.task == CAUSAL_LM:
        for name in ("text_pair_column", "label_column"):
            if getattr(options, name) != _default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} is for --task {CLASSIFICATION}: text alone trains a causal LM"
                )
    is_text = all(path.suffix == ".txt" for path in (options.data, *options.eval_data))
    if is_text and options.text_column != _default_of("text_column"):
        raise TrainingError("--text-column is for .jsonl, .csv and datasets; .txt has none")


def _default_of(name: str) -> Any:
    return TrainOptions.__dataclass_fields__[name].default
