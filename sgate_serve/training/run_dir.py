"""The run folder, OUT.work, which holds checkpoints until a run is complete.

It records the options of the run, which can only be resumed with the same options.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.errors import TrainingError

OPTIONS_FILE = "options.json"


def run_dir_of(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def check_empty(out: Path) -> None:
    """Raise TrainingError if `out` cannot take the result; called before hours of training."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not empty; give a new folder or remove this one")


def start_run_dir(run_dir: Path, options: Mapping[str, Any]) -> None:
    """Create the folder; raise TrainingError if it holds an interrupted run."""
    if run_dir.exists():
        raise TrainingError(
            f"{run_dir} holds an interrupted run; continue it with --resume, or remove it"
        )
    run_dir.mkdir(parents=True)
    (run_dir / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def resume_run_dir(run_dir: Path, options: Mapping[str, Any]) -> None:
    """Raise TrainingError unless the folder holds an interrupted run with the same options."""
    record = run_dir / OPTIONS_FILE
    if not record.exists():
        raise TrainingError(f"{record} is missing, so there is no run to resume; drop --resume")
    started = json.loads(record.read_text(encoding="utf-8"))
    changed = [name for name, value in options.items() if started.get(name) != value]
    if changed:
        raise TrainingError(
            f"the run in {run_dir} was started with a different {', '.join(changed)}; give the "
            f"options in its {OPTIONS_FILE}, or remove the folder"
        )
