"""Digests of files of weights: every byte is read once and the result remembered.

A digest is a sha256 in hex. `digests/` in the cache folder has one JSON file per hashed file, with
the size, inode and times of the file at that moment. A file that differs in any of them is hashed
again, so an edit in place is noticed even if the time of modification was set back.
"""

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from sgate_serve.environment import cache_dir, num_cpus
from sgate_serve.errors import CheckpointError

logger = logging.getLogger(__name__)

# Name → the first byte and the one after the last.
Spans = Mapping[str, tuple[int, int]]

DIGESTS_DIR = "digests"
RECORD_VERSION = 1
WHOLE = ""
CHUNK_BYTES = 2**22
# Two changes within one tick of a file system's clock leave the same times, so nothing is
# remembered about a file that changed this recently.
SETTLED_NS = 2 * 10**9
# A bar appears only if hashing takes longer.
SILENT_SECONDS = 2.0


@dataclass(frozen=True)
class FileState:
    """Tells one content of a file from another without reading it."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> "FileState":
        """Raise CheckpointError if the file is missing."""
        try:
            found = file.stat()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def is_settled(self, now_ns: int) -> bool:
        return max(self.modified_ns, self.changed_ns) < now_ns - SETTLED_NS


def file_digest(file: Path) -> str:
    """Return the digest of a whole file; raise CheckpointError if it cannot be read."""
    spans = {WHOLE: (0, FileState.of(file).size)}
    return span_digests({file: spans})[file][WHOLE]


def span_digests(wanted: Mapping[Path, Spans]) -> dict[Path, dict[str, str]]:
    """Return the digest of each named span of each file.

    Only files that changed since they were last hashed are read, with all CPUs. Raises
    CheckpointError for a file that cannot be read, or that changes meanwhile.
    """
    now, states = time.time_ns(), {file: FileState.of(file) for file in wanted}
    known = {file: _recall(file, states[file], spans) for file, spans in wanted.items()}
    found = {file: dict(digests or {}) for file, digests in known.items()}
    unknown = {file: wanted[file] for file, digests in known.items() if digests is None}
    for file, name, digest in _hash_all(unknown):
        found[file][name] = digest
    for file in unknown:
        if FileState.of(file) != states[file]:
            raise CheckpointError(f"{file} changed while it was read; run the command again")
        if states[file].is_settled(now):
            _remember(file, states[file], found[file])
    return found


def _hash_all(unknown: Mapping[Path, Spans]) -> Iterator[tuple[Path, str, str]]:
    """Yield file, name and digest of every span, in order, hashed by as many threads as CPUs."""
    total = sum(end - start for spans in unknown.values() for start, end in spans.values())
    bar = tqdm(
        desc="reading all weights once",
        total=total,
        unit="B",
        unit_scale=True,
        disable=None,
        delay=SILENT_SECONDS,
        leave=False,
    )
    with bar, ThreadPoolExecutor(num_cpus()) as pool:
        for file, spans in unknown.items():
            try:
                with file.open("rb", buffering=0) as stream:
                    digests = pool.map(partial(_hash, stream.fileno()), spans.values())
                    for (name, (start, end)), digest in zip(spans.items(), digests, strict=True):
                        bar.update(end - start)
                        yield file, name, digest
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def _hash(descriptor: int, span: tuple[int, int]) -> str:
    """Return the digest of the bytes [start, end) of an open file; raise OSError if it ends."""
    (start, end), digest = span, hashlib.sha256()
    view = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    while start < end:
        count = os.preadv(descriptor, [view[: end - start]], start)
        if not count:
            raise OSError(errno.EIO, "it became shorter while it was read")
        digest.update(view[:count])
        start += count
    return digest.hexdigest()


def _record_path(file: Path) -> Path:
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
    return cache_dir() / DIGESTS_DIR / f"{name}.json"


def _recall(file: Path, state: FileState, spans: Spans) -> dict[str, str] | None:
    """Return the remembered digests of the spans, None if the file has changed since."""
    try:
        record = json.loads(_record_path(file).read_text(encoding="utf-8"))
        same = record["version"] == RECORD_VERSION and record["state"] == list(astuple(state))
        digests: dict[str, str] = record["digests"]
        return digests if same and digests.keys() == spans.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(file: Path, state: FileState, digests: Mapping[str, str]) -> None:
    path = _record_path(file)
    record = {
        "version": RECORD_VERSION,
        "file": str(file.resolve()),
        "state": astuple(state),
        "digests": dict(digests),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as staged:
            json.dump(record, staged)
        Path(staged.name).replace(path)
    except OSError as error:
        _warn_forgetful(path.parent, str(error.strerror))


@lru_cache
def _warn_forgetful(folder: Path, reason: str) -> None:
    logger.warning(
        "%s cannot be written (%s): weights will be hashed at every start; set SGATE_CACHE to a "
        "folder that can be written",
        folder,
        reason,
    )
