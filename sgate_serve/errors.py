"""Errors that a user can cause, one class per part of the product, and failures of the system.

The command line prints the message on one line and exits 2; the server turns `RequestError` into
an OpenAI error body. A full disk or a missing permission is reported the same way, whichever
library meets it. Any other exception is a bug and keeps its traceback.
"""

import errno
import os
import re
import resource
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class SgateError(Exception):
    """Base of all errors that a user can fix; the message says what, where, and what to do."""


class CheckpointError(SgateError):
    """A model folder is missing, truncated, malformed or of an unsupported family."""


class GatesError(SgateError):
    """A gates folder is malformed or belongs to another base model."""


class PlanError(SgateError):
    """A plan cannot be made, or a stored plan is malformed."""


class EngineError(SgateError):
    """An engine is missing, cannot load the model, or lacks what was requested."""


class BenchError(SgateError):
    """A load cannot be run: an option, its data, or a server that is unreachable or refuses it."""


class TrainingError(SgateError):
    """Training cannot start or cannot reach its target, because of data, options or packages."""


class OutputError(SgateError):
    """A file or folder cannot be written: the disk is full, a permission or a folder is missing."""


class RequestError(SgateError):
    """A request that the server or an engine rejects.

    `param` names the offending field, `status` is the HTTP status, `code` is OpenAI's error code.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


# Rust libraries (safetensors, tokenizers) put the number into the text of an exception of their
# own; writers in C++ (torch) and C (numpy) give no number at all.
RUST_NUMBER = re.compile(r"\(os error (\d+)\)")
UNNUMBERED = re.compile(r"PytorchStreamWriter failed|iostream error|\d+ requested and \d+ written")
REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of the quota, or write to another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write to another disk",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "give a path on a file system that can be written",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "check the path",
    errno.EEXIST: "give a path that does not exist yet",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.EISDIR: "give the path of a file",
    errno.ELOOP: "a link in the path leads back to itself",
    errno.ENOMEM: "free some memory, or ask for less of it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk or the network file system",
}


# What a file that is written meets, never one that is read.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class SystemFailure:
    """A refusal of the operating system: the reason, the remedy, and the path if it is known."""

    reason: str
    remedy: str | None
    path: str | None

    @classmethod
    def of(cls, error: BaseException) -> "SystemFailure | None":
        """Return the failure that an exception reports or was raised from; None for any other."""
        if isinstance(error, OSError) and error.errno is not None:
            named = error.filename
            if error.errno in NO_ROOM and error.filename2 is not None:
                named = error.filename2  # a copy's target: its source is the first
            path = None if named is None else str(os.fsdecode(named))
            return cls._numbered(error.errno, path, error.strerror)
        found = RUST_NUMBER.search(str(error))
        if found:
            return cls._numbered(int(found[1]), None, None)
        if isinstance(error, RuntimeError | OSError) and UNNUMBERED.search(str(error)):
            return cls("a file cannot be written in full", _remedy_without_number(), None)
        return None if error.__cause__ is None else cls.of(error.__cause__)

    @classmethod
    def _numbered(cls, number: int, path: str | None, reason: str | None) -> "SystemFailure":
        return cls(reason or os.strerror(number), REMEDIES.get(number), path)

    def line(self, path: str | None = None) -> str:
        """Return one line that names the failure's path, or `path` if it has none."""
        named = self.path or path
        place = "" if named is None else f"{named}: "
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"{place}{self.reason}{remedy}"


def _remedy_without_number() -> str:
    """Return what helps against a write that fails without saying why."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    raised = "" if limit == resource.RLIM_INFINITY else "raise the limit on files (ulimit -f), "
    return f"{raised}{REMEDIES[errno.ENOSPC]}"


@contextmanager
def writing(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Raise OutputError naming the file if the system refuses to write `path` or a file in it.

    `remedy` is added to the message.
    """
    try:
        yield
    except SgateError:
        raise
    except Exception as error:
        failure = SystemFailure.of(error)
        if failure is None:
            raise
        line = failure.line(str(path))
        raise OutputError(line if remedy is None else f"{line}, or {remedy}") from error


LONGEST_WORD = 200


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `; did you mean X?` for the known word that is most like `word`, or an empty text."""
    if len(word) > LONGEST_WORD:  # comparing takes time that grows with the square of it
        return ""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(word.lower(), by_lower, 1)
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def percent_meant(value: float) -> str:
    """Return `; did you mean X?` for the fraction that a percentage was meant to be, or nothing."""
    return f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
