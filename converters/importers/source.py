"""Gates on disk: the safetensors headers of a file or a folder. Pickle files are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.checkpoint.tensor_files import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorInfo,
    read_header,
)
from sgate_serve.checkpoint.weights_files import read_headers
from sgate_serve.errors import CheckpointError, GatesError

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class GatesSource:
    """The headers of all tensors at one location, which is the path that the user gave."""

    location: Path
    tensors: Mapping[str, TensorInfo]

    @property
    def folder(self) -> Path:
        return self.location if self.location.is_dir() else self.location.parent

    @classmethod
    def open(cls, location: Path, files: Sequence[str]) -> "GatesSource":
        """Open a file, or the first of `files` in a folder; raise GatesError if it has none."""
        source = cls.find(location, files)
        if source is None:
            raise GatesError(f"{location} holds no {' or '.join(files)}; is it the right folder?")
        return source

    @classmethod
    def find(cls, location: Path, files: Sequence[str]) -> "GatesSource | None":
        """Open a file, or the first of `files` in a folder; None for a folder without them.

        Raises GatesError for a malformed file, a missing path, or a folder with only pickle files.
        """
        if not location.exists():
            raise GatesError(f"{location}: no such file or folder; give the folder of the gates")
        try:
            if not location.is_dir():
                check_no_pickle([location])
                return cls(location, read_header(location))
            return cls._in_folder(location, files)
        except CheckpointError as error:
            if location.is_file() and location.suffix != SAFETENSORS_SUFFIX:
                raise GatesError(
                    f"{location} is not a safetensors file; --gates takes a gates folder, as "
                    "`sgate train --out` writes it, or the safetensors file in it"
                ) from error
            raise GatesError(str(error)) from error

    @classmethod
    def _in_folder(cls, folder: Path, files: Sequence[str]) -> "GatesSource | None":
        for name in files:
            if (folder / name).exists():
                is_model = name in (INDEX_FILE, SINGLE_FILE)
                return cls(folder, read_headers(folder) if is_model else read_header(folder / name))
        if not any(folder.glob("*.safetensors")):
            check_no_pickle(sorted(folder.iterdir()))
        return None


def check_no_pickle(files: Sequence[Path]) -> None:
    """Raise GatesError for the first of `files` whose suffix is that of a pickle."""
    for file in files:
        if file.suffix in PICKLE_SUFFIXES:
            raise GatesError(
                f"{file} is a pickle, which may run code when read; load it once with the tool "
                "that wrote it and save it as safetensors"
            )
