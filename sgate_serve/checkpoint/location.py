"""Finds the folder that a location names: a local path, or a repository on the Hugging Face hub."""

import errno
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from sgate_serve.checkpoint.other_layouts import PICKLES, describe_file, resave_remedy
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE
from sgate_serve.errors import CheckpointError, writing

# Everything that a command may read of a repository; weights for other frameworks are left there.
HUB_FILES = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors-*.safetensors",
    "*/model.safetensors",
)
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
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

    Raises CheckpointError, with the nearest name that exists, for a location that is neither, and
    for a repository of pickles alone; OutputError if the hub's cache cannot be written.
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
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if _is_of_disk(error):
            with writing(Path(HF_HUB_CACHE), "set HF_HOME to another folder"):
                raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = hint or (
            f"where there is a network, run `hf download {name} --local-dir DIR`, and give DIR"
        )
        raise CheckpointError(
            f"{name}: no such folder here, and the hub did not answer with it ({reason}); {remedy}"
        ) from error
    _check_no_pickle(name, folder)
    return folder


def _is_of_disk(error: Exception) -> bool:
    """Say whether the system refused a file: sockets fail with other numbers, or without a name."""
    named = getattr(error, "filename", None) is not None
    return (
        isinstance(error, OSError)
        and error.errno is not None
        and (named or error.errno in DISK_ERRORS)
    )


def _check_no_pickle(name: str, folder: Path) -> None:
    """Raise CheckpointError for a repository of pickles alone, which are left on the hub."""
    if any((folder / weights).exists() for weights in (SINGLE_FILE, INDEX_FILE)):
        return
    pickle = next((file for file in PICKLES if _is_on_hub(name, file, folder)), None)
    if pickle is not None:
        raise CheckpointError(
            f"{name}: its weights are a pickle ({pickle}), which may run code and is not read; run "
            f"`hf download {name} --local-dir DIR`, {resave_remedy(folder, 'DIR')}, and give DIR"
        )


def _is_on_hub(name: str, file: str, folder: Path) -> bool:
    """Ask for a file of a repository; without a network it counts as missing if it is not here."""
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return (folder / file).exists() or file_exists(name, file)
    except (HfHubHTTPError, OSError):
        return False


def _names_inside(folder: Path) -> Iterator[str]:
    """Yield the names of the folders in a folder, none if it cannot be listed."""
    try:
        yield from (path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        return
