"""GGUF files given as models: each is dequantized once, into a folder of the cache."""

import logging
from importlib.metadata import version
from pathlib import Path

from sgate_serve.checkpoint.digests import file_digest
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.environment import EXTRAS, cache_dir, check_installed
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.cache_folder import new_cache_folder
from sgate_serve.progress import activity

logger = logging.getLogger(__name__)

GGUF_DIR, FOLDER_VERSION = "gguf", 2


def model_folder(location: str) -> str:
    """Return the folder of a GGUF file, or of a folder that holds one and no config; else the same.

    Raises CheckpointError, with the command that installs them, if packages are missing, for a file
    that cannot be read, and for a folder that holds several.
    """
    file = gguf_file(Path(location))
    if file is None:
        return location
    check_installed(
        f"{file} is dequantized by transformers, which needs",
        ("torch", "transformers", *EXTRAS["gguf"]),
        "train,gguf",
        CheckpointError,
    )
    key = f"{file_digest(file)[:32]}-{version('transformers')}-{FOLDER_VERSION}"
    target = cache_dir() / GGUF_DIR / key
    if not (target / CONFIG_FILE).is_file():
        _dequantize(file, target)
    logger.info("%s: dequantized to fp32 in %s", file, target)
    return str(target)


def gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path names, itself or as the only model in a folder."""
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / CONFIG_FILE).exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files; give one of them, such as {files[0]}"
        )
    return files[0] if files else None


def _dequantize(file: Path, target: Path) -> None:
    """Write the folder beside `target` and move it there; another process may have been faster."""
    from sgate_serve.models.gguf import write_dequantized

    with new_cache_folder(target, "dequantizing", CONFIG_FILE) as staging:
        with activity(f"dequantizing {file.name}", is_brief=True):
            write_dequantized(file, staging)
        _check_written(file, staging)


def _check_written(file: Path, folder: Path) -> None:
    """Raise CheckpointError if tensors and config contradict each other: transformers lets them."""
    try:
        layout = Checkpoint.open(folder).layout
        if layout is not None:
            raise CheckpointError(layout)
    except CheckpointError as error:
        raise CheckpointError(
            f"{file}: its metadata and tensors contradict each other ({error}); give the "
            "checkpoint that the file was made from"
        ) from error
