"""Data by name, through the `datasets` library: `glue/TASK`, a name on the hub, or a folder.

Columns must be `text`, `text_pair` and `label`; those of GLUE's tasks are mapped to them. Names end
in none of the suffixes of files that we read ourselves.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgate_serve.environment import missing_packages
from sgate_serve.errors import TrainingError

FILE_SUFFIXES = (".txt", ".jsonl", ".csv")
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
    """Say whether this is a name for the `datasets` library, not a file nor like one of ours."""
    return not path.is_file() and path.suffix not in FILE_SUFFIXES


def dataset_records(path: Path, splits: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of the first of `splits` that the dataset has.

    Raises TrainingError if `datasets` is missing, or the dataset cannot be loaded or has none of
    the splits.
    """
    if missing_packages(["datasets"]):
        raise TrainingError(
            f"{path} is not a file; to read it as the name of a dataset run: pip install "
            '"sgate-serve[data]"'
        )
    from datasets import load_dataset

    name, _, config = str(path).partition("/")
    names = (str(path),) if path.is_dir() or name != "glue" else (name, config)
    try:
        found = load_dataset(*names)
    except Exception as error:  # its many readers raise all kinds
        raise TrainingError(
            f"{path} is not a file, and datasets cannot load it: {str(error).splitlines()[0]:.200}"
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
