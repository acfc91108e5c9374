"""The table of engines: choosing one, rejecting names, parsing options."""

import logging
import sys
from pathlib import Path

import pytest

from sgate_serve.engines.engine_options import OnnxOptions, SlotOptions
from sgate_serve.engines.table import (
    check_engine,
    choose_engine,
    load_engine,
    parse_options,
    parse_pooling_options,
)
from sgate_serve.errors import EngineError


@pytest.mark.parametrize(
    ("is_installed", "has_gpu", "expected", "reason"),
    [
        (True, True, "vllm", "vLLM is installed and finds a GPU"),
        (True, False, "onnx", "vLLM is installed but finds no GPU"),
        (False, False, "onnx", "vLLM is not installed"),
    ],
)
def test_auto_takes_vllm_where_it_has_a_gpu_and_says_why(
    is_installed: bool,
    has_gpu: bool,
    expected: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = {"vllm": [] if is_installed else ["vllm"]}
    monkeypatch.setattr(
        "sgate_serve.engines.table.missing_modules", lambda row: missing.get(row.modules[0], [])
    )
    monkeypatch.setattr("sgate_serve.engines.table.import_object", lambda target: lambda: has_gpu)
    with caplog.at_level(logging.INFO):
        assert choose_engine("auto") == expected
        assert choose_engine("auto", "layers of a kind") == "torch"
    assert f"engine auto: {expected} ({reason})" in caplog.text
    assert "engine auto: torch (the others have no layers of a kind)" in caplog.text


def test_auto_never_falls_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vllm", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match="engine onnx needs onnxruntime, not installed here; run"):
        choose_engine("auto")


def test_named_engine_is_kept() -> None:
    assert choose_engine("torch") == "torch"


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="unknown engine 'tgi'; use one of: onnx, torch, vllm"):
        choose_engine("tgi")


def test_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        EngineError,
        match=r'engine torch needs torch, not installed here; run: .*install.*\[train\]"$',
    ):
        check_engine("torch")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r'vllm needs vllm, .*install.*\[vllm\]", or \[vllm-c'):
        load_engine("vllm", Path("anywhere"))


def test_options_of_an_engine() -> None:
    options = parse_options("onnx", ["--slots", "4", "--max-model-len=99"])
    assert options == OnnxOptions(slots=4, max_model_len=99)
    assert parse_options("onnx", []) == OnnxOptions()
    assert parse_options("onnx", ["--device", "cuda"]) == OnnxOptions(device="cuda")
    assert parse_options("onnx", ["--precision", "int4"]) == OnnxOptions(precision="int4")
    assert parse_options("onnx", ["--batch-invariant"]) == OnnxOptions(batch_invariant=True)
    assert parse_options("onnx", ["--kv-cache-dtype", "int8"]) == OnnxOptions(kv_cache_dtype="int8")
    assert parse_options("torch", ["--slots", "4"]) == SlotOptions(slots=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gpus", "2"],
            "engine onnx: unrecognized arguments: --gpus 2; its options: --slots VALUE, .*",
        ),
        (["--slots", "many"], "argument --slots: 'many': give a whole number from 0 to"),
        (["--slot", "3"], "unrecognized arguments: --slot 3"),
        (["--precision", "int2"], "precision 'int2': ONNX graphs are fp32, fp16, int8, int4"),
        (["--threads", "0"], "engine option threads must be at least 1, found 0"),
        (
            ["--kv-cache-dtype", "int4"],
            "engine option kv_cache_dtype is 'int4'; give auto or int8; did you mean int8",
        ),
        (
            ["--kv-cache-dtype", "int8", "--device", "cuda"],
            "--kv-cache-dtype int8 needs --device cpu, found cuda; leave one out",
        ),
    ],
)
def test_options_that_an_engine_does_not_have(arguments: list[str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_options("onnx", arguments)


def test_only_the_embedded_engine_rounds_its_cache() -> None:
    arguments = ["--kv-cache-dtype", "int8"]
    for parse, name in ((parse_options, "torch"), (parse_pooling_options, "onnx")):
        with pytest.raises(EngineError, match=f"engine {name}: unrecognized arguments: --kv-cache"):
            parse(name, arguments)
