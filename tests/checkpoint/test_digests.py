"""Digests: they cover every byte, and are remembered for exactly as long as a file is unchanged."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from sgate_serve.checkpoint import digests
from sgate_serve.checkpoint.digests import file_digest, span_digests
from sgate_serve.errors import CheckpointError

SIZE = 3 * 2**20


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    """Remember files at once, in a cache of their own; return the spans as they are hashed."""
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    monkeypatch.setattr(digests, "CHUNK_BYTES", 2**16)
    spans: list[tuple[int, int]] = []
    plain = digests._hash

    def recording(descriptor: int, span: tuple[int, int]) -> str:
        spans.append(span)
        return plain(descriptor, span)

    monkeypatch.setattr(digests, "_hash", recording)
    return spans


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    time.sleep(0.02)  # longer than a tick of the file system's clock
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_spans_and_files_are_hashed_whole(
    file: Path, tmp_path: Path, hashed: list[tuple[int, int]]
) -> None:
    data, other = file.read_bytes(), tmp_path / "other"
    other.write_bytes(data[:7])
    spans = {"all but one": (1, SIZE), "nothing": (5, 5), "edge": (SIZE - 1, SIZE)}
    found = span_digests({file: spans, other: {"": (0, 7)}})
    expected = {name: sha256(data[start:end]) for name, (start, end) in spans.items()}
    assert found == {file: expected, other: {"": sha256(data[:7])}}
    assert file_digest(other) == sha256(data[:7])


def test_a_file_is_read_again_only_if_it_changed(file: Path, hashed: list[tuple[int, int]]) -> None:
    before = file_digest(file)
    assert file_digest(file) == before and hashed == [(0, SIZE)]
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(SIZE // 2)
        stream.write(bytes([stream.read(1)[0] ^ 1]))
    # The time of modification can be set back, that of the change cannot.
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert file_digest(file) == sha256(file.read_bytes())
    assert len(hashed) == 2


def test_another_file_of_the_same_name_is_read(file: Path, hashed: list[tuple[int, int]]) -> None:
    before, other = file_digest(file), file.with_name("new")
    other.write_bytes(file.read_bytes()[::-1])
    other.replace(file)
    assert file_digest(file) != before


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    file: Path, hashed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 10**12)
    assert file_digest(file) == file_digest(file)
    assert len(hashed) == 2


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"version": 1, "state": null}'])
def test_a_damaged_record_is_replaced(
    file: Path, tmp_path: Path, hashed: list[tuple[int, int]], record: str
) -> None:
    expected = file_digest(file)
    (path,) = (tmp_path / "cache" / "digests").iterdir()
    path.write_text(record)
    assert [file_digest(file) for _ in range(2)] == [expected] * 2
    assert len(hashed) == 2
    assert json.loads(path.read_text())["digests"] == {"": expected}


def test_a_file_that_changes_meanwhile_is_refused(
    file: Path, hashed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(descriptor: int, span: tuple[int, int]) -> str:
        file.write_bytes(b"shorter")
        return "no digest"

    monkeypatch.setattr(digests, "_hash", cut)
    with pytest.raises(CheckpointError, match="weights changed while it was read; run the command"):
        file_digest(file)


def test_files_that_cannot_be_read(file: Path, hashed: list[tuple[int, int]]) -> None:
    with pytest.raises(CheckpointError, match="lost cannot be read: No such file"):
        file_digest(file.with_name("lost"))
    with pytest.raises(CheckpointError, match="cannot be read: it became shorter while it was"):
        span_digests({file: {"beyond": (0, SIZE + 1)}})


def test_a_cache_that_cannot_be_written_is_named_once(
    file: Path,
    tmp_path: Path,
    hashed: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "a file"))
    with caplog.at_level(logging.WARNING):
        assert file_digest(file) == file_digest(file) == sha256(file.read_bytes())
    assert caplog.text.count("cannot be written") == 1
    assert "weights will be hashed at every start; set SGATE_CACHE" in caplog.text
