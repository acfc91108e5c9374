"""Folders of the user's cache: written beside their place and moved there whole."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgate_serve.errors import writing


@contextmanager
def new_cache_folder(target: Path, prefix: str, last_file: str) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `target`; another process may have been faster.

    A target without `last_file`, which is written last, is damaged, and replaced.
    Raises OutputError if the system refuses to write it.
    """
    with writing(target, "set SGATE_CACHE to another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=target.parent))
        try:
            yield staging
            if not (target / last_file).is_file():
                shutil.rmtree(target, ignore_errors=True)
                staging.replace(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
