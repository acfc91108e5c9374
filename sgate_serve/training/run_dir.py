"""The run folder, OUT.work, which holds checkpoints until a run is complete.

It records the options of the run, which can only be resumed with the same options.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.writer import check_unused, check_writable
from sgate_serve.errors import CheckpointError, TrainingError, writing
from sgate_serve.json_fields import read_json

OPTIONS_FILE = "options.json"


def run_dir_of(out: Path) -> Path:
    """Return the run folder next to `out`, which may be `.` or end in `..`."""
    own = out if out.name not in ("", "..") else out.resolve()
    return own.with_name(own.name + ".work")


def check_empty(out: Path) -> None:
    """Raise TrainingError if `out` cannot take the result; called before hours of training.

    Raises OutputError naming the folder if the system refuses to write it.
    """
    try:
        check_unused(out)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    check_writable(out)
    check_writable(run_dir_of(out))


def check_no_run(run_dir: Path) -> None:
    """Raise TrainingError if the folder holds an interrupted run."""
    if run_dir.exists() and set(run_dir.iterdir()) - {_unfinished(run_dir)}:
        raise TrainingError(
            f"{run_dir} holds an interrupted run; continue it with --resume, or remove it"
        )


def start_run_dir(run_dir: Path, options: Mapping[str, Any]) -> None:
    """Create the folder of a run with these options."""
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        # Replaced at once, so that an interruption leaves either nothing or a run to resume.
        unfinished = _unfinished(run_dir)
        unfinished.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(run_dir / OPTIONS_FILE)


def check_same_run(run_dir: Path, options: Mapping[str, Any]) -> None:
    """Raise TrainingError unless the folder holds an interrupted run with the same options."""
    record = run_dir / OPTIONS_FILE
    if not record.exists():
        raise TrainingError(f"{record} is missing, so there is no run to resume; drop --resume")
    started = read_json(record)
    changed = [name for name, value in options.items() if started.get(name) != value]
    if changed:
        raise TrainingError(
            f"the run in {run_dir} was started with a different {', '.join(changed)}; give the "
            f"options in its {OPTIONS_FILE}, or remove the folder"
        )


def _unfinished(run_dir: Path) -> Path:
    return run_dir / f".{OPTIONS_FILE}"
