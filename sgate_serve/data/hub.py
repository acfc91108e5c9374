"""Data by name, through the `datasets` library: `glue/TASK`, a name on the hub, or a folder.

GLUE's columns are mapped to `text`, `text_pair` and `label`. A path that looks like a file or a
folder is no name: if it is missing, that is the error.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgate_serve.environment import install_command, missing_packages
from sgate_serve.errors import TrainingError, did_you_mean

FILE_SUFFIXES = (".txt", ".jsonl", ".csv")
# Of files that hold data, or archives of it, in forms that are not read. Names may have other dots.
OTHER_SUFFIXES = (
    *(".arrow", ".gz", ".html", ".json", ".md", ".ndjson", ".parquet", ".pdf", ".text", ".tar"),
    *(".tgz", ".tsv", ".xls", ".xlsx", ".xml", ".yaml", ".zip", ".zst"),
)
# GLUE task → the columns of text and text_pair.
GLUE: Mapping[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
}
TRAIN = ("train",)
HELD_OUT = ("validation", "validation_matched", "test")


def is_dataset_name(path: Path) -> bool:
    """Say whether this is a name or folder for the `datasets` library, not a file or like one."""
    if path.is_dir():
        return True
    is_like_file = path.suffix.lower() in (*FILE_SUFFIXES, *OTHER_SUFFIXES)
    # Names on the hub have at most an owner and a name.
    is_like_path = (
        path.is_absolute() or len(path.parts) > 2 or path.parts[:1] in ((), ("..",), ("~",))
    )
    return not (path.exists() or is_like_file or is_like_path)


def check_exists(path: Path) -> None:
    """Raise TrainingError for a path of data that is neither there nor the name of a dataset.

    So it does for a dataset, if `datasets` is missing.
    """
    if is_dataset_name(path):
        _check_datasets(path)
        return
    if path.exists():
        return
    if not path.parent.is_dir():
        raise TrainingError(f"{path}: no such file; there is no folder {path.parent} either")
    raise TrainingError(f"{path}: no such file{_neighbour(path)}")


def _neighbour(path: Path) -> str:
    """Return a question about the file in the same folder whose name is most like this one."""
    if path.exists() or not path.parent.is_dir():
        return ""
    return did_you_mean(str(path), [str(other) for other in path.parent.iterdir()])


def dataset_records(path: Path, splits: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of the first of `splits` that the dataset has.

    Raises TrainingError if the dataset cannot be loaded or has none of the splits.
    """
    from datasets import load_dataset

    name, _, config = str(path).partition("/")
    names = (str(path),) if path.is_dir() or name != "glue" else (name, config)
    try:
        found = load_dataset(*names)
    except Exception as error:  # its many readers raise all kinds
        raise TrainingError(
            f"{path} is {_kind(path)}, and datasets cannot load it: {_reason(error):.200}"
            f"{_neighbour(path)}"
        ) from error
    split = next((split for split in splits if split in found), None)
    if split is None:
        raise TrainingError(
            f"{path} has no split {' or '.join(splits)} (it has {', '.join(found)}); give a file"
        )
    columns = GLUE.get(config, ()) if name == "glue" else ()
    for number, values in enumerate(found[split], 1):
        named = dict(zip(("text", "text_pair"), (values[c] for c in columns), strict=False))
        yield f"{path}, {split} record {number}", {**values, **named}


def _check_datasets(path: Path) -> None:
    if missing_packages(["datasets"]):
        raise TrainingError(
            f"{path} is {_kind(path)}; give a {', '.join(FILE_SUFFIXES)} file, or to read it as a "
            f"dataset run: {install_command('data')}{_neighbour(path)}"
        )


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "not a file"


def _reason(error: BaseException) -> str:
    """Return the first line of what an error was raised from: `datasets` wraps the actual one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)
