"""Outputs against outputs: tolerance, ties, missing rows, and what equal outputs do not show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from converters.convert import ConvertOptions, convert
from sgate_serve.engines.onnx.engine import OnnxEngine
from sgate_serve.engines.onnx.pooling_engine import OnnxPoolingEngine
from sgate_serve.verify.comparison import LogitComparison, OutputComparison, tolerance_of
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, build
from tests.small_llama import dense_llama, save

Rows = NDArray[np.float32]


def compared(expected: Rows, found: Rows, *, has_pooled: bool = False) -> LogitComparison:
    comparison = OutputComparison(has_pooled)
    comparison.add(expected, found)
    return comparison.result()


def test_ties_are_no_failures_and_differences_are() -> None:
    expected = np.array([[1.0, 1.0 + 1e-5, 0.0], [0.0, 3.0, 1.0]], np.float32)
    swapped = np.array([[1.0 + 1e-5, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)
    tied = compared(expected, swapped)
    assert (tied.holds, tied.tokens_equal, tied.ties, tied.undecided) == (True, 1, 1, 1)
    wrong = np.array([[1.0, 1.0 + 1e-5, 0.0], [4.0, 3.0, 1.0]], np.float32)
    different = compared(expected, wrong)
    assert (different.holds, different.tokens_equal, different.ties) == (False, 1, 0)
    assert not compared(expected, expected * np.float32("nan")).holds


def test_rows_after_a_close_choice_may_differ_if_they_are_few() -> None:
    expected = np.random.default_rng(0).normal(0, 1, (8, 5)).astype(np.float32)
    found = expected.copy()
    found[3:5] += 1
    for doubtful, holds, rerouted in (
        (range(3, 8), True, 2),
        (range(4, 8), False, 1),
        ((), False, 0),
    ):
        comparison = OutputComparison()
        comparison.add(expected, found, np.isin(np.arange(8), list(doubtful)))
        result = comparison.result()
        assert (result.holds, result.rerouted) == (holds, rerouted)
        assert result.num_tokens == 8 - rerouted
    comparison = OutputComparison()
    comparison.add(expected, found + 1, np.ones(8, np.bool_))
    assert not comparison.result().holds


def test_the_tolerance_has_a_floor() -> None:
    assert [tolerance_of(scale) for scale in (0.0, 1.0, 50.0)] == [1e-4, 1e-4, 5e-3]


@pytest.mark.parametrize(
    ("num_rows", "has_pooled", "lacking"),
    [
        (5, False, None),
        (4, True, None),
        (5, True, None),
        (4, False, "returned 4 of 5 rows"),
        (3, True, "returned 3 of 5 rows"),
        (0, True, "returned 0 of 5 rows"),
        (6, True, "returned 6 of 5 rows"),
    ],
)
def test_only_a_pooled_state_may_be_missing(
    num_rows: int, has_pooled: bool, lacking: str | None
) -> None:
    rows = np.random.default_rng(0).random((6, 3), np.float32)
    result = compared(rows[:5], rows[:num_rows], has_pooled=has_pooled)
    assert result.lacking == lacking and result.holds is (lacking is None)
    assert result.max_abs_diff == 0


def test_an_engine_that_omits_tokens_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(dense_llama(), tmp_path / "base")
    convert(ConvertOptions(str(base.folder), tmp_path / "out", to=("hf", "onnx"), precision="fp16"))
    options = VerifyOptions(str(base.folder), str(tmp_path / "out"))
    whole: Any = OnnxEngine.logits
    monkeypatch.setattr(OnnxEngine, "logits", lambda *args: whole(*args)[:-1])
    result = verify(options)
    assert not result.passed and result.max_abs_diff < result.tolerance
    assert result.differences == ("onnx returned 47 of 48 rows",) * 2
    monkeypatch.setattr(OnnxEngine, "logits", lambda *args: whole(*args)[:0])
    assert not verify(replace(options, max_divergence=1)).passed


@pytest.mark.parametrize("cut", [0, 1])
def test_an_engine_may_omit_the_pooled_state_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """The onnx engine returns the states of tokens, without the pooled one."""
    build(ZOO["bert"][0], seed=0).save_pretrained(tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", to=("hf", "onnx")))
    whole = OnnxPoolingEngine.encode

    def fewer(*args: Any) -> list[Rows]:
        return [rows[: len(rows) - cut] for rows in whole(*args)]

    monkeypatch.setattr(OnnxPoolingEngine, "encode", fewer)
    result = verify(VerifyOptions(str(tmp_path / "base"), str(tmp_path / "out")))
    assert result.passed is (cut == 0)
    said = ("onnx returned 47 of 49 rows", "texts of different lengths in one batch: onnx returned")
    found = [any(each.startswith(words) for each in result.differences) for words in said]
    assert found == [cut == 1] * 2


def test_what_equal_outputs_do_not_show_is_said(tmp_path: Path) -> None:
    model = dense_llama()
    with torch.no_grad():
        model.lm_head.weight *= 1e-6
    base = save(model, tmp_path / "base")
    convert(ConvertOptions(str(base.folder), tmp_path / "out"))
    result = verify(VerifyOptions(str(base.folder), str(tmp_path / "out")))
    said = "; ".join(result.not_checked)
    assert result.passed
    assert "a difference of outputs: all are within the tolerance of zero" in said
    assert "teacher-forced tokens, mostly: in 352 of 352 the best two logits are as close" in said
    usual = save(dense_llama(), tmp_path / "usual")
    said = "; ".join(verify(VerifyOptions(str(usual.folder), str(usual.folder))).not_checked)
    assert "mostly" not in said and "tolerance of zero" not in said
