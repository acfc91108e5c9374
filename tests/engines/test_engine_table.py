"""Engines by name: choosing, refusing, their options."""

import logging
import sys
from pathlib import Path

import pytest

from sgate_serve.engines import check_engine, choose_engine, load_engine, parse_options
from sgate_serve.engines.scheduler import SlotOptions
from sgate_serve.errors import EngineError


def test_auto_takes_the_first_installed_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_engine("auto") == "onnx"
    assert "engine auto: onnx (CPU; needs neither torch nor transformers)" in caplog.text


def test_auto_falls_to_torch_and_then_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert choose_engine("auto") == "torch"
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match="no engine is installed; run: pip install sgate-serve"):
        choose_engine("auto")


def test_named_engine_is_kept() -> None:
    assert choose_engine("torch") == "torch"


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="unknown engine 'tgi'; use one of: onnx, torch"):
        choose_engine("tgi")


def test_planned_engine() -> None:
    with pytest.raises(EngineError, match="engine vllm is not in this release yet; use one of"):
        load_engine("vllm", Path("anywhere"))


def test_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        EngineError,
        match=r'engine torch needs torch, not installed here; run: pip install "sgate-serve\[train',
    ):
        check_engine("torch")


def test_options_of_an_engine() -> None:
    options = parse_options("onnx", ["--slots", "4", "--max-model-len=99"])
    assert options == SlotOptions(slots=4, max_model_len=99)
    assert parse_options("onnx", []) == SlotOptions()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2"], "engine onnx: unrecognized arguments: --gpus 2; its options: --slots"),
        (["--slots", "many"], "argument --slots: invalid int value: 'many'"),
        (["--slot", "3"], "unrecognized arguments: --slot 3"),
        (["--threads", "0"], "engine option threads must be at least 1, found 0"),
    ],
)
def test_options_that_an_engine_does_not_have(arguments: list[str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_options("onnx", arguments)
