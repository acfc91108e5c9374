"""A full disk, wherever it is met: one line that names the path, and exit status 2.

The limit on the size of files stands in for the disk, as it is met by every library alike.
"""

import errno
import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgate_serve.errors import OutputError, SgateError, SystemFailure, writing
from tests.commands.running import run
from tests.small_llama import dense_llama, save
from tests.text_model import write_tokenizer


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = save(dense_llama(vocab_size=400), tmp_path / "base").folder
    write_tokenizer(base)
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 900)
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    # The server sets up the log of its process.
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    return tmp_path


TRAIN = "train BASE --data TEXT --out NEW --steps 2 --seq-len 16"
PLACES = {
    "BASE": "base",
    "COPY": "copy",
    "TEXT": "text.txt",
    "NEW": "new",
    "PLOT": "new.png",
    "FULL": "/dev/full",
}


@pytest.mark.parametrize(
    ("words", "num_bytes", "named"),
    [
        ("plan BASE --out NEW", 0, "new"),
        ("plan BASE --out FULL", None, "/dev/full: No space left on device; free some space"),
        ("convert BASE --out NEW", 0, "new"),
        ("convert BASE --out NEW", 20_000, "new"),
        ("convert BASE --out NEW --to hf,onnx", 300_000, "new"),
        ("convert BASE --out NEW", 3_000, "new/.sgate-incomplete/tokenizer.json: File too large"),
        ("verify BASE COPY --engine torch", 0, "copy"),
        ("eval BASE --data TEXT --seq-len 16 --engine onnx", 0, "or set SGATE_CACHE to another"),
        ("inspect BASE --plot PLOT", 1_000, "new.png"),
        ("serve BASE --port 0", 0, "or set SGATE_CACHE to another folder"),
        ("serve BASE --port 0", 1_000, "in full; raise the limit on files (ulimit -f), free some"),
        ("bench compare BASE BASE --rounds 1 --json FULL", None, "/dev/full: No space left on"),
        ("demo --quick --dir NEW", 0, "new"),
        (TRAIN, 0, "new.work"),
        (TRAIN, 4_000, "new.work"),
    ],
)
def test_a_full_disk_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, num_bytes: int | None, named: str
) -> None:
    given = [str(folder / PLACES[word]) if word in PLACES else word for word in words.split()]
    with largest_file(resource.RLIM_INFINITY if num_bytes is None else num_bytes):
        status, _, err = run(capsys, *given)
    last = err.splitlines()[-1]
    assert status == 2 and "Traceback" not in err
    assert last.startswith(f"sgate {given[0]}: ") and named in last
    reasons = ("File too large; raise the limit", "No space left", "cannot be written in full;")
    assert any(reason in last for reason in reasons)
    if given[0] == "convert":
        assert not (folder / "new").exists()
    if given[0] == "train" and num_bytes:
        assert last.endswith("repeat the command with --resume to continue")
        assert run(capsys, *given, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space, or write to another disk"),
        (errno.EACCES, "change its permissions, or give another path"),
        (errno.EROFS, "give a path on a file system that can be written"),
        (errno.ENAMETOOLONG, "give a shorter path"),
    ],
)
@pytest.mark.parametrize("path", [None, "/somewhere/else"])
def test_a_failure_names_the_path_and_the_remedy(
    tmp_path: Path, number: int, remedy: str, path: str | None
) -> None:
    with pytest.raises(OutputError) as raised, writing(tmp_path):
        raise OSError(number, os.strerror(number), path)
    assert str(raised.value) == f"{path or tmp_path}: {os.strerror(number)}; {remedy}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_copy_that_finds_no_room_names_its_target(tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError, match=r"^/to/target: "), writing(tmp_path):
        raise OSError(number, os.strerror(number), "/from/source", None, "/to/target")
    with pytest.raises(OutputError, match=r"^/from/source: "), writing(tmp_path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "/from/source", None, "/to/target")


def test_verify_names_the_folder_for_its_copies(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, new, tmp = (str(folder / name) for name in ("base", "new", "tmp"))
    Path(tmp).mkdir()
    monkeypatch.setattr("tempfile.tempdir", tmp)
    assert run(capsys, "convert", base, "--out", new)[0] == 0
    with largest_file(3_000):
        status, _, err = run(capsys, "verify", base, new, "--engine", "torch")
    assert status == 2 and err.startswith(f"sgate verify: {tmp}/")
    assert "tokenizer.json: File too large; raise the limit" in err
    assert err.endswith("or set TMPDIR to another folder\n")


def test_libraries_of_other_languages_tell_the_same() -> None:
    for text in (
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0",
        "19200 requested and 0 written",
    ):
        failure = SystemFailure.of(RuntimeError(text))
        assert failure is not None and failure.line("f").startswith("f: ")
        wrapped = ValueError("could not be saved")
        wrapped.__cause__ = RuntimeError(text)
        assert SystemFailure.of(wrapped) == failure


def test_a_bug_keeps_its_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SystemFailure.of(ValueError("a bug")) is SystemFailure.of(OSError("no number")) is None

    def fail(*args: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("sgate_serve.commands.plan.make_plan", fail)
    with pytest.raises(ValueError, match="a bug"):
        run(capsys, "plan", folder / "base")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("9 GiB"), "out of memory (9 GiB); close other programs, or use a smaller"),
        (ModuleNotFoundError("x", name="peft.tuners"), "peft is not installed here; run: "),
        (SgateError("several\nlines"), "several lines"),
        (PermissionError(errno.EACCES, "Permission denied", "config.json"), "config.json: Permiss"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    line: str,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("sgate_serve.commands.plan.make_plan", fail)
    status, out, err = run(capsys, "plan", folder / "base")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sgate plan: {line}")
