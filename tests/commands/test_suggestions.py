"""Messages that lead on: misspelt words, missing packages, and plans that remove nothing."""

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import logging as transformers_logging

from sgate_serve import environment
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import COMMANDS, OnceFilter
from sgate_serve.environment import install_command
from sgate_serve.models.progress import hidden_bars
from sgate_serve.options import whole
from tests.commands.running import run
from tests.converters.test_convert import write_gates
from tests.small_llama import dense_llama, save
from tests.text_model import write_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    checkpoint = save(dense_llama(vocab_size=400), tmp_path / "base")
    write_tokenizer(checkpoint.folder)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 900)
    return checkpoint


def typed_flags() -> Iterator[tuple[list[str], str, object]]:
    """Yield each command, with its kind if it has some, each long flag, and its reader."""
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"sgate_serve.commands.{command}").add_arguments(parser)
        for words, own in parsers([command], parser):
            for action in own._actions:
                for flag in action.option_strings:
                    if flag.startswith("--"):
                        yield words, flag, action.type


def parsers(
    words: list[str], parser: argparse.ArgumentParser
) -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Yield a parser and those of its kinds, each with the words that lead to it."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind, own in action.choices.items():
                yield from parsers([*words, kind], own)


def test_every_misspelt_flag_is_answered_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = list(typed_flags())
    assert len(flags) > 80
    for words, flag, _ in flags:
        misspelt = f"{flag}x"
        status, out, err = run(capsys, *words, misspelt, "1")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"unknown option {misspelt}; did you mean {flag}?" in err


def test_no_number_is_negative_or_beyond_what_libraries_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [(words, flag) for words, flag, kind in typed_flags() if kind is whole]
    assert len(flags) > 25
    for words, flag in flags:
        for value in ("-1", "99999999999999999999", "1.5", "many"):
            status, out, err = run(capsys, *words, f"{flag}={value}")
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert f"argument {flag}: {value!r}: give a whole number from 0 to 2147483647" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "BASE", "--data", "x"], "invalid choice: 'trian' .*; did you mean train?"),
        (["bench", "comapre", "BASE", "BASE"], "; did you mean compare?"),
        (["bench", "serve", "http://a", "--slo", "tftt:1"], "--slo .*; did you mean ttft?"),
        (["--", "convert"], "sgate: give the command first, not --"),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        (["serve", "m", "--slots", "2"], "options of the engine follow `--`"),
        (["--print-completion", "bsah"], "; did you mean bash?"),
        (["train", "-target", "0.3"], "unknown option -target; did you mean --target?"),
        (["train", "BASE", "--target=30%"], "'30%': give a number; did you mean 0.3?"),
        (["train", "BASE", "--target", "0,3"], "'0,3': give a number; did you mean 0.3?"),
        (["train", "BASE", "--target", "many"], "'many': give a number (see"),
        (["train", "BASE", "--target", "nan"], "'nan': give a number (see"),
        (["verify", "BASE", "OUT", "--max-divergence", "inf"], "'inf': give a number (see"),
        (["verify", "BASE", "OUT", "--max-divergence", "1e999"], "'1e999': give a number (see"),
        (["verify", "BASE", "OUT", "--max-divergence", "1_0"], "'1_0': give a number (see"),
        (["serve", "BASE", "--engine", "onxx"], "unknown engine 'onxx'; .*; did you mean onnx?"),
        (["serve", "BASE", "--", "--slot", "4"], "unrecognized .*; did you mean --slots?"),
        (
            ["serve", "BASE", "--log-format", "jsn"],
            "log_format is 'jsn'; it must be text or json; did you mean json?",
        ),
        (["convert", "BASE", "--out", "o", "--to", "onxx"], "--to onxx: .*; did you mean onnx?"),
        (
            ["convert", "BASE", "--out", "o", "--precision", "fp61"],
            "--precision fp61: .*; did you mean fp16?",
        ),
        (["plan", "BASE", "--target-engine", "onx"], "; did you mean onnx?"),
        (
            ["plan", "BASE", "--gates", "BASE", "--gates-kind", "sgat"],
            "--gates-kind sgat: .*; did you mean sgate?",
        ),
        (["serve", "BASE", "--", "--device", "cdua"], "device is 'cdua'; .*; did you mean cuda?"),
        (["serve", "BASE", "--", "--precision", "it8"], "did you mean int8?"),
        (
            ["serve", "BASE", "--", "--precision", "atuo"],
            "auto is int4 or int8 .*did you mean auto?",
        ),
        (
            ["convert", "BASE", "--out", "o", "--precision", "atuo"],
            "--precision atuo: .*; did you mean auto?",
        ),
    ],
)
def test_misspelt_words_are_answered_with_the_one_that_was_meant(
    base: Checkpoint, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = [str(base.folder) if word == "BASE" else word for word in words]
    status, out, err = run(capsys, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert re.search(pattern, err), err


TRAIN = "train BASE --data TEXT --out NEW"
NEEDED = [
    *((TRAIN, name, "train") for name in ("torch", "transformers", "peft", "accelerate")),
    *((TRAIN, name, "train") for name in ("sklearn", "scipy")),
    (TRAIN, "matplotlib", "plot"),
    ("train BASE --data glue/sst2 --task classification --out NEW", "datasets", "data"),
    *(("verify BASE BASE", name, "train") for name in ("torch", "transformers")),
    *(("eval BASE --data TEXT", name, "eval") for name in ("sklearn", "scipy")),
    *(("eval BASE --data TEXT --engine torch", name, "train") for name in ("torch",)),
    ("eval BASE --data imdb", "datasets", "data"),
    ("serve BASE --engine torch", "torch", "train"),
    ("serve BASE --engine vllm", "vllm", "vllm"),
    ("bench compare BASE BASE --engine torch", "transformers", "train"),
    ("bench compare BASE BASE --plot NEW.png", "matplotlib", "plot"),
    ("inspect BASE --plot NEW.png", "matplotlib", "plot"),
    *(("demo --dir NEW", name, "demo") for name in ("torch", "accelerate", "matplotlib", "openai")),
]


@pytest.mark.parametrize(("words", "package", "extra"), NEEDED)
def test_a_missing_package_is_named_with_a_command_that_installs_it_here(
    base: Checkpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    root = base.folder.parent
    places = {"BASE": "base", "TEXT": "text.txt", "NEW": "new", "NEW.png": "new.png"}
    given = [str(root / places[word]) if word in places else word for word in words.split()]
    before = sorted(root.rglob("*"))
    status, out, err = run(capsys, *given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(rf'run: .*pip install -e "{re.escape(str(ROOT))}\[{extra}\]"', err), err
    assert sorted(root.rglob("*")) == before


def test_the_command_that_installs_fits_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        record: str | None = None

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.record

    # As in site-packages: no pyproject.toml next to the package.
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "sgate_serve" / "environment.py"))
    monkeypatch.setattr(environment, "distribution", lambda name: Installed())
    monkeypatch.setattr("shutil.which", lambda name: f"{Path(sys.executable).parent}/x")
    for record, expected in {
        None: '"sgate-serve[eval]"',
        '{"url": "file:///clone", "dir_info": {}}': '"sgate-serve[eval] @ file:///clone"',
        '{"url": "https://host/x", "vcs_info": {"vcs": "git", "commit_id": "1a"}}': (
            '"sgate-serve[eval] @ git+https://host/x@1a"'
        ),
    }.items():
        monkeypatch.setattr(Installed, "record", record)
        assert install_command("eval") == f"pip install {expected}"
    monkeypatch.setattr(Installed, "record", None)
    assert install_command("") == 'pip install "sgate-serve"'
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/pip")
    assert install_command("eval").startswith(f"{sys.executable} -m pip install")
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert install_command("eval").startswith(f"uv pip install --python {sys.executable} ")


def test_a_plan_that_removes_nothing_names_the_next_step(
    base: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = base.folder, base.folder.parent
    message = f"nothing to remove: no row or column of {folder} is zero; find out what"
    _, out, err = run(capsys, "plan", folder)
    assert message in out and f"`sgate train {folder} --data TEXT.txt" in out and err == ""
    _, out, err = run(capsys, "plan", folder, "--json")
    assert out.startswith("{") and message in err
    _, out, _ = run(capsys, "convert", folder, "--out", root / "same")
    assert message in out
    write_gates(base, root / "open", **{"model.layers.0.mlp_units": np.ones(30, np.float32)})
    for command, *rest in (["plan"], ["convert", "--out", str(root / "open-out")]):
        _, out, _ = run(capsys, command, folder, "--gates", root / "open", *rest)
        assert f"nothing to remove: the gates of {root / 'open'} are all open; give other" in out
    closed = np.ones(30, np.float32)
    closed[3] = 0
    write_gates(base, root / "one", **{"model.layers.0.mlp_units": closed})
    _, out, _ = run(capsys, "plan", folder, "--gates", root / "one", "--align", "30")
    assert "nothing can be removed, though gates or zeros close 0." in out
    _, out, _ = run(capsys, "convert", folder, "--gates", root / "one", "--out", root / "pruned")
    assert "nothing" not in out
    _, out, _ = run(capsys, "plan", root / "pruned")
    assert f"nothing to remove: {root / 'pruned'} is pruned already, so serve it" in out


def test_a_line_is_logged_once() -> None:
    once = OnceFilter()
    records = [logging.LogRecord("n", 20, "p", 1, "slots %d", (n,), None) for n in (1, 2, 1)]
    assert [once.filter(record) for record in records] == [True, True, False]


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_transformers_draws_no_bars(base: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    root = base.folder.parent
    transformers_logging.enable_progress_bar()
    try:
        with hidden_bars():
            assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.is_progress_bar_enabled()
        train = ("train", base.folder, "--data", root / "text.txt", "--seq-len", "16", "--steps")
        for words in (
            ("verify", base.folder, base.folder, "--engine", "torch"),
            ("eval", base.folder, "--data", root / "text.txt", "--engine", "torch"),
            (*train, "2", "--out", root / "gates", "--dense-steps", "1"),
        ):
            status, _, err = run(capsys, *words)
            assert status == 0 and "Loading weights" not in err and "model shards" not in err
    finally:
        transformers_logging.disable_progress_bar()


def test_help_of_train_is_in_groups_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "train", "--help")
    titles = re.findall(r"^(\w[\w ,-]+):$", out, re.MULTILINE)
    assert titles[2:] == [
        "data",
        "the run and its result",
        "what is removed",
        "training and recovery",
        "for research, as the defaults do better",
        "examples",
        "afterwards",
    ]
    assert "\n  sgate train my-model --data text.txt --target 0.3" in out
