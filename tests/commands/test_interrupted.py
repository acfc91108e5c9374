"""Ctrl-C while a command works: one line, exit status 130, and how to continue."""

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.cli import COMMANDS
from tests.commands.running import run
from tests.small_llama import dense_llama, save
from tests.text_model import write_tokenizer

TRAIN = ["train", "BASE", "--data", "TEXT", "--out", "NEW", "--steps", "4", "--seq-len", "16"]
# Command → its words, what is interrupted in the middle of its work, and what the line then says.
WORK: Mapping[str, tuple[list[str], str, str]] = {
    "train": (TRAIN, "sgate_serve.training.phases.trainer:PhaseTrainer.compute_loss", "--resume"),
    "plan": (["plan", "BASE"], "sgate_serve.commands.plan:make_plan", ""),
    "convert": (["convert", "BASE", "--out", "NEW"], "converters.to_hf:write_plan", ""),
    "verify": (["verify", "BASE", "OUT"], "sgate_serve.loaders.torch_model:TorchModel.logits", ""),
    "eval": (
        ["eval", "BASE", "--data", "TEXT", "--seq-len", "16", "--engine", "torch"],
        "sgate_serve.loaders.torch_model:TorchModel.logits",
        "",
    ),
    "inspect": (["inspect", "BASE"], "sgate_serve.reports.inspection:Inspection.to_json", ""),
    "serve": (["serve", "BASE"], "sgate_serve.checkpoint.reader:Checkpoint.check", ""),
    "bench": (
        ["bench", "compare", "BASE", "BASE"],
        "sgate_serve.engines.timed:TimedSlotEngine.prefill_seconds",
        "",
    ),
    "demo": (
        ["demo", "--quick", "--dir", "NEW"],
        "sgate_serve.demo.stages:write_corpus",
        "repeat the command to continue in NEW",
    ),
}


@pytest.fixture(autouse=True)
def heard_interrupts() -> Iterator[None]:
    """Hear SIGINT, which shells make background jobs, and so their children, ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """A small model, its converted folder, a text, and a folder that is yet to be made."""
    base = save(dense_llama(vocab_size=400), tmp_path / "base").folder
    write_tokenizer(base)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 900)
    assert run(capsys, "convert", base, "--out", tmp_path / "out")[0] == 0
    files = {"BASE": base, "OUT": tmp_path / "out", "TEXT": tmp_path / "text.txt"}
    return {name: str(path) for name, path in {**files, "NEW": tmp_path / "new"}.items()}


def interrupt(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Send SIGINT to this process whenever `target`, "module:attribute", has been called."""
    module, _, attribute = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parts, name = attribute.split(".")
    for part in parts:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, call)


def test_every_command_is_interrupted() -> None:
    assert set(WORK) == set(COMMANDS)


@pytest.mark.parametrize("command", WORK)
def test_ctrl_c_is_one_line(
    command: str,
    places: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, target, hint = WORK[command]
    given = [places.get(word, word) for word in words]
    with monkeypatch.context() as patch:
        interrupt(patch, target)
        status, _, err = run(capsys, *given)
    assert status == 130
    last = err.splitlines()[-1]
    assert last.startswith(f"sgate {command}: interrupted")
    assert hint.replace("NEW", places["NEW"]) in last
    assert "Traceback" not in err
    if command == "train":
        # The line is right: the run continues.
        assert f"{places['NEW']}.work holds what is done" in last
        assert run(capsys, *given)[0] == 2
        assert run(capsys, *given, "--resume")[0] == 0
    elif command == "convert":
        assert not Path(places["NEW"]).exists()
        assert run(capsys, *given)[0] == 0


def test_ctrl_c_ends_a_process_that_measures(places: dict[str, str]) -> None:
    words = ["bench", "compare", places["BASE"], places["BASE"], "--rounds", "100000"]
    command = [sys.executable, "-m", "sgate_serve", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()  # the first line of a log: it has parsed and loads
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    # A shell sees 130 either way: CPython ends by the signal itself if some import was interrupted.
    assert process.returncode in (130, -signal.SIGINT)
    assert rest.splitlines()[-1].startswith("sgate bench: interrupted")
    assert "Traceback" not in rest


def test_a_log_in_json_is_json_from_its_first_line(places: dict[str, str]) -> None:
    words = ["serve", places["BASE"], "--port", "0", "--log-format", "json"]
    command = [sys.executable, "-m", "sgate_serve", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on ")
            process.send_signal(signal.SIGINT)
            _, log = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in log.splitlines()]
    assert messages[0].startswith("engine auto: ")
