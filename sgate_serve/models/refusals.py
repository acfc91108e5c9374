"""Errors of transformers' config and model classes, as ours that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers

from sgate_serve.errors import CheckpointError, SgateError


@contextmanager
def refusals_named(source: Path) -> Iterator[None]:
    """Turn whatever transformers raises about a config into a CheckpointError that names the file.

    Its classes raise errors of any type for values that they cannot use.
    """
    try:
        yield
    except SgateError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source}: transformers {transformers.__version__} refuses this config "
            f"({type(error).__name__}: {reason:.300}); correct the field"
        ) from error
