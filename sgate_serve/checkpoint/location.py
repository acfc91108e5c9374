"""Finds the folder that a location names: a local path, or a repository on the Hugging Face hub."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from sgate_serve.checkpoint.other_layouts import describe_file
from sgate_serve.errors import CheckpointError

# Everything that a command may read of a repository; weights for other frameworks are left there.
HUB_FILES = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "model.safetensors",
    "model-*.safetensors",
    "*/model.safetensors",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Names from before the hub had owners, by their beginnings: those of families that are supported.
OWNERS: Mapping[str, str] = {
    "distilbert-": "distilbert",
    "distilroberta-": "distilbert",
    "distilgpt2": "distilbert",
    "bert-": "google-bert",
    "roberta-": "FacebookAI",
    "gpt2": "openai-community",
}


def find_folder(location: str | Path) -> Path:
    """Return a local folder: the path itself, or a snapshot of the hub repository it names.

    Raises CheckpointError, with the nearest name that exists, for a location that is neither.
    """
    path = Path(location)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(describe_file(path))
    name = str(location)
    near = get_close_matches(path.name, list(_names_inside(path.parent)), n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else None
    if HUB_ID.fullmatch(name):
        return _download(name, hint)
    if hint is None and MODEL_NAME.fullmatch(name):
        owner = next((OWNERS[start] for start in OWNERS if name.startswith(start)), None)
        hint = f"on the hub it is {owner}/{name}" if owner else "names on the hub are OWNER/NAME"
    raise CheckpointError(f"{path}: no such folder{f'; {hint}' if hint else ''}")


def _download(name: str, hint: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = hint or (
            f"where there is a network, run `hf download {name} --local-dir DIR`, and give DIR"
        )
        raise CheckpointError(
            f"{name}: no such folder here, and the hub did not answer with it ({reason}); {remedy}"
        ) from error


def _names_inside(folder: Path) -> Iterator[str]:
    """Yield the names of the folders in a folder, none if it cannot be listed."""
    try:
        yield from (path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        return
