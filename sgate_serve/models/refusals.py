"""Errors of transformers' classes, as ours that name the file."""

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
        raise refused(source, error, "refuses this config", "correct the field") from error


def refused(
    source: Path, error: Exception, what: str, remedy: str, longest: int = 300
) -> CheckpointError:
    """Return an error of transformers as ours; of its text, at most `longest` characters."""
    reason = " ".join(str(error).split())[:longest]
    return CheckpointError(
        f"{source}: transformers {transformers.__version__} {what} "
        f"({type(error).__name__}: {reason}); {remedy}"
    )
