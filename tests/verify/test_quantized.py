"""Int8 folders: their plan is proven, and the cost of rounding is measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.cli import main
from sgate_serve.errors import CheckpointError, EngineError
from sgate_serve.plan import PLAN_FILE
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from sgate_serve.verify.divergence import mean_kl
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.converters.test_convert import random_gates, write_gates
from tests.families.test_equivalence import converted
from tests.families.zoo import ZOO
from tests.small_llama import dense_llama, save


@pytest.fixture
def options(tmp_path: Path) -> VerifyOptions:
    """A base with gates and its int8 conversion."""
    base = save(dense_llama(), tmp_path / "base")
    gates = write_gates(base, tmp_path / "gates", **random_gates(base, seed=4, closed=0.4))
    convert(ConvertOptions(str(base.folder), tmp_path / "out", gates, precision="int8"))
    return VerifyOptions(str(base.folder), str(tmp_path / "out"), gates)


def flip(folder: Path, name: str) -> None:
    """Change one byte in the middle of a tensor."""
    info = Checkpoint.open(folder).tensors[name]
    content = bytearray(info.file.read_bytes())
    content[(info.start + info.end) // 2] ^= 1
    info.file.write_bytes(bytes(content))


def test_the_plan_is_proven_and_rounding_measured(options: VerifyOptions) -> None:
    result = verify(options)
    assert result.passed and result.tensors_equal is True
    assert result.max_abs_diff < result.tolerance
    assert result.tokens_equal + result.ties == result.num_tokens
    found = result.quantization
    assert found is not None and found.mean_kl is not None and found.greedy_agreement is not None
    assert (found.precision, found.engine, found.max_divergence) == ("int8", "torch", None)
    # Rounding shows, and is small: these logits reach 6.
    assert result.tolerance < found.max_abs_diff < 0.5
    assert 1e-6 < found.mean_kl < 1e-2
    assert 0.8 < found.greedy_agreement <= 1
    lines = "\n".join(result.lines())
    assert "before quantization: max abs logit difference" in lines
    assert "stored tensors equal the plan's rewriting in int8" in lines
    assert f"mean KL divergence {found.mean_kl:.2e} nats per token" in lines


def test_unquantized_folders_have_null(options: VerifyOptions, tmp_path: Path) -> None:
    convert(ConvertOptions(options.checkpoint, tmp_path / "floats", options.gates))
    result = verify(replace(options, out=str(tmp_path / "floats")))
    assert result.passed and result.to_json()["quantization"] is None


@pytest.mark.parametrize(("limit", "status"), [("1", 0), ("1e-9", 1)])
def test_max_divergence_is_a_check(
    options: VerifyOptions, limit: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", options.checkpoint, "--gates", str(options.gates), options.out, "--json"]
    capsys.readouterr()
    assert main([*words, "--max-divergence", limit]) == status
    report = json.loads(capsys.readouterr().out)
    assert report["quantization"]["max_divergence"] == float(limit)
    assert report["passed"] is (status == 0)
    if status:
        assert "nats, above --max-divergence 1e-09" in report["difference"]
    stored = json.loads((Path(options.out) / CERTIFICATE_FILE).read_text())
    assert stored == report
    assert main(["inspect", options.out]) == 0
    assert "before quantization: max abs" in (text := capsys.readouterr().out)
    assert "; int8 diverges by" in text


def test_limits_without_effect_are_refused(options: VerifyOptions, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"--max-divergence -1: give a number of nats, at least"):
        verify(replace(options, max_divergence=-1))
    with pytest.raises(EngineError, match=r"--max-divergence nan: give a number of nats"):
        verify(replace(options, max_divergence=float("nan")))
    convert(ConvertOptions(options.checkpoint, tmp_path / "floats", options.gates))
    floats = replace(options, out=str(tmp_path / "floats"), max_divergence=0.1)
    with pytest.raises(EngineError, match=r"floats is not quantized on torch; omit the option"):
        verify(floats)
    at = converted(ZOO["bert"][0], tmp_path / "bert", 0, precision="int8")
    with pytest.raises(EngineError, match=r"out are not logits of tokens or classes"):
        verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"], max_divergence=0.1))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_graphs_in_other_precisions_are_measured_and_the_plan_proven(
    options: VerifyOptions, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "graph"
    convert(
        ConvertOptions(
            options.checkpoint, out, options.gates, to=("hf", "onnx"), precision=precision
        )
    )
    result = verify(replace(options, out=str(out)))
    assert result.passed and result.tensors_equal is True
    assert result.max_abs_diff < result.tolerance
    # The plan is proven for the weights before rounding, by a model that is never written.
    assert result.engine == ("torch" if precision == "int8" else "onnx")
    found = result.quantization
    assert found is not None and (found.precision, found.engine) == (precision, "onnx")
    assert result.tolerance < found.max_abs_diff and found.mean_kl is not None
    limit = {"fp16": 1e-4, "int8": 1e-2, "int4": 0.5}[precision]
    assert limit / 1e4 < found.mean_kl < limit
    rewritten = "rewriting in int8 of" if precision == "int8" else "rewriting of"
    assert rewritten in "\n".join(result.lines())
    strict = verify(replace(options, out=str(out), max_divergence=1e-9))
    assert not strict.passed and f"{precision} diverges by" in str(strict.difference)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_narrower_floats_are_measured_against_those_of_the_base(
    options: VerifyOptions, tmp_path: Path, precision: str, engine: str
) -> None:
    convert(ConvertOptions(options.checkpoint, tmp_path / "n", options.gates, precision=precision))
    narrow = replace(options, out=str(tmp_path / "n"), engine=engine)
    result = verify(narrow)
    found = result.quantization
    assert result.passed and result.max_abs_diff < result.tolerance
    assert found is not None and found.mean_kl is not None and found.relative_error is not None
    assert (found.precision, found.stored, found.engine) == (precision, precision, engine)
    assert {"fp16": 1e-5, "bf16": 1e-4}[precision] < found.relative_error < 0.05
    lines = list(result.lines())
    assert f"rounded to {precision} alike: max abs logit difference" in lines[0]
    assert lines[-1] == f"verified: the plan; {precision} is a measured approximation"
    assert not verify(replace(narrow, max_divergence=1e-12)).passed
    # What is narrow already loses nothing.
    again = str(tmp_path / "again")
    convert(ConvertOptions(narrow.out, Path(again), precision=precision))
    assert verify(VerifyOptions(narrow.out, again, engine=engine)).quantization is None


@pytest.mark.parametrize("to", [("hf",), ("hf", "onnx")])
def test_rounding_that_leaves_nothing_fails(
    options: VerifyOptions, tmp_path: Path, to: tuple[str, ...]
) -> None:
    """All logits become zero. The probabilities of such a base are alike, so no KL shows it."""
    model = dense_llama()
    with torch.no_grad():
        model.lm_head.weight *= 1e-8
    base = save(model, tmp_path / "small")
    convert(ConvertOptions(str(base.folder), tmp_path / "fp16", to=to, precision="fp16"))
    assert not Checkpoint.open(tmp_path / "fp16").read("lm_head.weight").any()
    result = verify(VerifyOptions(str(base.folder), str(tmp_path / "fp16")))
    assert not result.passed and result.tensors_equal
    assert "fp16 has a relative error of 1.00e+00 on random tokens" in str(result.difference)


def test_an_int8_folder_is_measured_on_onnx_as_well(options: VerifyOptions) -> None:
    result = verify(replace(options, engine="onnx"))
    assert result.passed and result.quantization is not None
    assert (result.quantization.precision, result.quantization.engine) == ("int8", "onnx")


@pytest.mark.parametrize("kind", ["weight", "weight_scale"])
def test_a_changed_byte_is_found(options: VerifyOptions, kind: str) -> None:
    name = f"model.layers.2.mlp.down_proj.{kind}"
    flip(Path(options.out), name)
    result = verify(options)
    assert not result.passed and result.tensors_equal is False
    assert result.difference == f"first differing layer: 2 (tensor {name})"
    # The plan itself holds.
    assert result.max_abs_diff < result.tolerance


def test_without_its_plan_nothing_can_be_proven(options: VerifyOptions) -> None:
    (Path(options.out) / PLAN_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"out is int8 and has no sgate_plan.json of this"):
        verify(options)


def test_an_int8_folder_is_no_base_of_a_verification(options: VerifyOptions) -> None:
    with pytest.raises(CheckpointError, match="is quantized to int8; give the unquantized"):
        verify(replace(options, checkpoint=options.out, gates=None))


def test_divergence_is_that_of_the_definition() -> None:
    expected = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)) + 7
    found = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    by_hand = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert mean_kl(expected, found) == pytest.approx(by_hand, rel=1e-5)
    assert mean_kl(expected, expected) == 0
    assert np.isnan(mean_kl(expected, expected * np.float32("nan")))
