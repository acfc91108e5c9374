"""Pooling models verified on ONNX: regressions, base models, and their first difference."""

from pathlib import Path

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, Variant, build
from tests.verify.test_verify import tamper


def converted(variant: Variant, root: Path, **config: int) -> VerifyOptions:
    build(variant, seed=0, **config).save_pretrained(root / "base")
    convert(ConvertOptions(str(root / "base"), root / "out", to=("hf", "onnx")))
    return VerifyOptions(str(root / "base"), str(root / "out"), None, "onnx")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_regression_has_one_output(tmp_path: Path, engine: str) -> None:
    options = converted(ZOO["bert"][1], tmp_path, num_labels=1)
    result = verify(VerifyOptions(options.checkpoint, options.out, None, engine))
    assert result.passed and result.tensors_equal
    assert (result.tokens_equal, result.num_tokens, result.ties) == (5, 5, 0)
    said = "\n".join(result.lines())
    assert "max abs value difference" in said and "5 of 5" not in said


def test_a_classifier_is_told_of_its_classes(tmp_path: Path) -> None:
    said = "\n".join(verify(converted(ZOO["bert"][1], tmp_path)).lines())
    assert "max abs logit difference" in said and "5 of 5 predicted classes equal" in said
    assert "token" not in said


def test_states_of_a_base_model_are_compared_token_by_token(tmp_path: Path) -> None:
    result = verify(converted(ZOO["distilbert"][0], tmp_path))
    assert result.passed and result.num_tokens == 4 * 48 + 64
    said = "\n".join(result.lines())
    assert "max abs hidden state difference" in said and "tokens" not in said


@pytest.mark.parametrize("layer", [0, 1])
def test_graph_of_other_weights_is_bisected_to_its_layer(tmp_path: Path, layer: int) -> None:
    options = converted(ZOO["bert"][1], tmp_path)
    tamper(tmp_path / "base", f"bert.encoder.layer.{layer}.output.dense.weight", amount=5.0)
    result = verify(options)
    assert not result.passed and result.difference is not None
    assert result.difference.startswith(f"first differing layer: {layer}, by ")
