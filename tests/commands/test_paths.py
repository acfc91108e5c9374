"""Every path flag of every command: a bad path ends in one line that names it, before any work."""

import argparse
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sgate_serve.cli import COMMANDS, _actions
from tests.commands.running import run
from tests.small_llama import dense_llama, save
from tests.text_model import write_tokenizer

# Command → words in which BASE is a small model, TEXT a file of text and NEW a folder to be made.
VALID: Mapping[str, list[str]] = {
    "train": ["train", "BASE", "--data", "TEXT", "--out", "NEW"],
    "plan": ["plan", "BASE"],
    "convert": ["convert", "BASE", "--out", "NEW"],
    "verify": ["verify", "BASE", "BASE"],
    "eval": ["eval", "BASE", "--data", "TEXT"],
    "inspect": ["inspect", "BASE"],
    "serve": ["serve", "BASE"],
    "bench": ["bench", "compare", "BASE", "BASE"],
    "demo": ["demo"],
}
# What only other words than these have.
OTHERS: Mapping[tuple[str, str], list[str]] = {
    ("bench", "models"): ["bench", "latency", "BASE"],
    ("bench", "--dataset"): ["bench", "serve", "http://127.0.0.1:1"],
}
# Flags and positional arguments that name files or folders: those that are read or worked in …
READ = {
    ("train", "base"),
    ("train", "--data"),
    ("train", "--eval-data"),
    ("train", "--mask"),
    ("plan", "checkpoint"),
    ("plan", "--gates"),
    ("convert", "checkpoint"),
    ("convert", "--gates"),
    ("verify", "checkpoint"),
    ("verify", "out"),
    ("verify", "--gates"),
    ("verify", "--data"),
    ("eval", "checkpoint"),
    ("eval", "--data"),
    ("eval", "--gates"),
    ("inspect", "out"),
    ("serve", "out"),
    ("bench", "dense"),
    ("bench", "pruned"),
    ("bench", "--beside"),
    ("bench", "models"),
    ("bench", "--dataset"),
    ("bench", "--data"),
}
# … and those that are written.
FILES = {
    ("plan", "--out"),
    ("inspect", "--plot"),
    ("bench", "--json"),
    ("bench", "--report"),
    ("bench", "--plot"),
}
NEW_FOLDERS = {("train", "--out"), ("convert", "--out")}
FOLDERS = {("demo", "--dir")}
WRITTEN = sorted(FILES | NEW_FOLDERS | FOLDERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    save(dense_llama(vocab_size=400), folder / "base")
    write_tokenizer(folder / "base")
    (folder / "text.txt").write_text("the cat sat on the mat\n" * 900)
    return folder


def words_for(command: str, name: str, folder: Path) -> list[str]:
    """Return words with which the command has a flag or positional argument of this name."""
    places = {"BASE": "base", "TEXT": "text.txt", "NEW": "new"}
    words = OTHERS.get((command, name), VALID[command])
    return [str(folder / places[word]) if word in places else word for word in words]


def with_value(command: str, name: str, value: str, folder: Path) -> list[str]:
    """Return the words of a command with another value for a flag or positional argument."""
    words = words_for(command, name, folder)
    if not name.startswith("--"):
        kinds = {"base": 1, "checkpoint": 1, "dense": 2, "pruned": 3, "models": 2}
        position = kinds.get(name, 2 if command == "verify" else 1)
        return [*words[:position], value, *words[position + 1 :]]
    if name == "--beside":
        value = f"other={value}"
    if name in words:
        position = words.index(name) + 1
        return [*words[:position], value, *words[position + 1 :]]
    return [*words, name, value]


def path_arguments() -> Iterator[tuple[str, str]]:
    """Yield the command and name of everything on the command line that is a path."""
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"sgate_serve.commands.{command}").add_arguments(parser)
        for action in _actions(parser):
            if isinstance(action, argparse._SubParsersAction) or action.metavar == "URL":
                continue
            is_pair = "FOLDER" in str(action.metavar)
            if action.type is Path or is_pair or not action.option_strings:
                yield command, (action.option_strings or [action.dest])[-1]


def test_every_path_is_in_the_tables() -> None:
    assert set(path_arguments()) == READ | set(WRITTEN)


@pytest.mark.parametrize(("command", "name"), sorted(READ))
@pytest.mark.parametrize("place", ["nowhere/at/all.txt", "/dev/null", "a" * 300, "text.txt/x"])
def test_a_path_that_cannot_be_read_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, place: str
) -> None:
    path = str(folder / place)
    status, out, err = run(capsys, *with_value(command, name, path, folder))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and path in err
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("command", "name", "place", "message"),
    [
        *((*flag, "text.txt/x", "text.txt") for flag in WRITTEN),
        *((*flag, "/proc/new/x", "/proc/new") for flag in WRITTEN),
        *((*flag, "a" * 300, "File name too long; give a shorter path") for flag in WRITTEN),
        # A file may be written again.
        *(
            (*flag, "text.txt", "text.txt is a file; give a")
            for flag in sorted(NEW_FOLDERS | FOLDERS)
        ),
    ],
)
def test_a_path_that_cannot_be_written_is_named_before_the_work(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
    place: str,
    message: str,
) -> None:
    forbid_work(monkeypatch)
    if name == "--plot":
        place += ".png"
    status, out, err = run(capsys, *with_value(command, name, str(folder / place), folder))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err


@pytest.mark.parametrize(("command", "name"), sorted(FILES))
def test_a_missing_folder_is_named_and_a_folder_is_not_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    suffix = ".png" if name == "--plot" else ".json"
    path = folder / "missing" / f"x{suffix}"
    _, _, err = run(capsys, *with_value(command, name, str(path), folder))
    assert f"{name} {path}: there is no folder {folder / 'missing'}; create it first" in err
    (folder / f"dir{suffix}").mkdir(exist_ok=True)
    _, _, err = run(capsys, *with_value(command, name, str(folder / f"dir{suffix}"), folder))
    assert f"{name} {folder / f'dir{suffix}'} is a folder; give a file name" in err


@pytest.mark.parametrize("command", ["train", "convert"])
def test_a_folder_with_content_is_not_to_be_removed(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = with_value(command, "--out", str(folder / "base"), folder)
    _, _, err = run(capsys, *words)
    assert err.endswith("base is not empty; give a new folder\n")


def test_trying_a_path_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    forbid_work(monkeypatch)
    for command, name in WRITTEN:
        file = "x.html" if name == "--report" else "x.png"
        place = folder / "not" / "yet" if (command, name) not in FILES else folder / file
        with pytest.raises(AssertionError, match="work has begun"):
            run(capsys, *with_value(command, name, str(place), folder))
        assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(("command", "name"), WRITTEN)
def test_a_folder_without_permission_is_named(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
) -> None:
    forbid_work(monkeypatch)
    locked = folder / "locked"
    locked.mkdir(exist_ok=True)
    locked.chmod(0o500)
    status, _, err = run(capsys, *with_value(command, name, str(locked / "x.png"), folder))
    assert status == 2 and "Permission denied; change its permissions" in err


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first step of every command that takes long fail the test."""

    def begin(*args: object, **options: object) -> None:
        raise AssertionError("work has begun")

    for name in (
        "sgate_serve.checkpoint.reader.Checkpoint.open",
        "sgate_serve.demo.walkthrough.check_sizes",
    ):
        monkeypatch.setattr(name, begin)
