"""`train`: from a dense base and data to a gates folder. It imports torch only when called."""

from sgate_serve.data.hub import check_exists
from sgate_serve.environment import check_installed
from sgate_serve.errors import TrainingError, did_you_mean
from sgate_serve.progress import activity
from sgate_serve.training.base_checks import open_base
from sgate_serve.training.option_checks import check_options
from sgate_serve.training.run_dir import check_empty, check_no_run, check_same_run, run_dir_of
from sgate_serve.training.train_options import BlockTimer, TrainOptions, TrainResult

PACKAGES = ("torch", "transformers", "peft", "accelerate", "sklearn", "scipy")


def check_packages() -> None:
    """Raise TrainingError naming the packages that training needs and that are not installed."""
    check_installed("training needs", PACKAGES, "train", TrainingError)


def check_logger(name: str) -> None:
    """Raise TrainingError unless transformers' Trainer can log to `name` here."""
    from transformers.integrations import get_available_reporting_integrations

    known = ("none", "all", *get_available_reporting_integrations())
    if name not in known:
        raise TrainingError(
            f"--report-to {name} is not installed here, or is not a logger of transformers; "
            f"install it, or use one of {', '.join(known)}{did_you_mean(name, known)}"
        )


def train(options: TrainOptions, timer: BlockTimer | None = None) -> TrainResult:
    """Find gates for the base, recover, and write the gates folder `options.out`.

    `timer` finds the block times for a target speedup; sgate_serve.bench.known_block_times has one.
    With `dry_run` nothing is written, and the metrics are an overview of the run. Raises
    TrainingError for missing packages, bad options or data, an `out` that is not empty, a target
    out of reach, a loss that is not finite, or too little memory; CheckpointError for a bad base.
    In a distributed run every process returns the same, and the main one writes.
    """
    check_packages()
    check_options(options)
    check_empty(options.out)
    if options.resume:
        check_same_run(run_dir_of(options.out), options.to_json())
    elif not options.dry_run:
        check_no_run(run_dir_of(options.out))
    for path in (options.data, *options.eval_data):
        check_exists(path)
    base = open_base(options)
    with activity("loading torch and transformers", is_brief=True):
        check_logger(options.report_to)
        from sgate_serve.training.pipeline import run_training
        from sgate_serve.training.quiet import quiet_libraries

    with quiet_libraries():
        return run_training(base, options, timer)
