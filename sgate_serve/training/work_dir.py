"""The folder beside OUT that holds checkpoints until a run is complete.

It records the options that it was started with: a run continues only as what it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.errors import TrainingError

OPTIONS_FILE = "options.json"


def work_dir_of(out: Path) -> Path:
    return out.with_name(out.name + ".work")


def check_empty(out: Path) -> None:
    """Raise TrainingError, before hours of training, if the result could not be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not empty; give a new folder or remove this one")


def start_work_dir(work: Path, options: Mapping[str, Any]) -> None:
    """Create the folder; raise TrainingError if an interrupted run is there."""
    if work.exists():
        raise TrainingError(
            f"{work} holds an interrupted run; continue it with --resume, or remove it"
        )
    work.mkdir(parents=True)
    (work / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def resume_work_dir(work: Path, options: Mapping[str, Any]) -> None:
    """Raise TrainingError unless an interrupted run with the same options is there."""
    record = work / OPTIONS_FILE
    if not record.exists():
        raise TrainingError(f"{record} is missing, so there is no run to resume; drop --resume")
    started = json.loads(record.read_text(encoding="utf-8"))
    changed = [name for name, value in options.items() if started.get(name) != value]
    if changed:
        raise TrainingError(
            f"the run in {work} was started with another {', '.join(changed)}; give the options "
            f"in its {OPTIONS_FILE}, or remove the folder"
        )
