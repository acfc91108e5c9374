"""Int8 folders of several families, with lowered modules: stored tensors and loading."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert
from converters.quantize import quantize
from sgate_serve.checkpoint.int8 import dequantize, int8_config, int8_weights
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, PlanError
from sgate_serve.models import MODELS
from sgate_serve.models.loading import config_from, load_model
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.test_equivalence import converted
from tests.families.zoo import VARIANTS, ZOO, Variant, build, token_batch

INT8_VARIANTS = [v for v in VARIANTS if v.family in ("llama", "phi3", "bert", "modernbert")]


@pytest.mark.parametrize("index_price", [0, None], ids=["lowered", "sliced"])
@pytest.mark.parametrize("variant", INT8_VARIANTS, ids=str)
def test_linears_of_the_blocks_are_rounded_and_nothing_else(
    variant: Variant, index_price: int | None, tmp_path: Path
) -> None:
    at = converted(variant, tmp_path, 0, index_price=index_price, precision="int8")
    floats = tmp_path / "floats"
    convert(ConvertOptions(str(at["base"]), floats, at["gates"], index_price=index_price))
    exact, rounded = Checkpoint.open(floats), Checkpoint.open(at["out"])
    assert rounded.spec == exact.spec
    assert bool(exact.spec.lowered) == (index_price == 0)
    weights = int8_weights(exact.spec)
    scales = {f"{name}_scale" for name in weights}
    assert set(rounded.tensors) == {*exact.tensors, *scales}
    for name, info in exact.tensors.items():
        stored, before = rounded.tensors[name], exact.read(name)
        if name in weights:
            expected, scale = quantize(before, name)
            assert stored.dtype == "I8"
            np.testing.assert_array_equal(rounded.read(name), expected)
            np.testing.assert_array_equal(rounded.read(f"{name}_scale"), scale)
        else:
            assert (stored.dtype, stored.name) == (info.dtype, info.name)
            np.testing.assert_array_equal(rounded.read(name), before)
    result = verify(VerifyOptions(str(at["base"]), str(at["out"]), at["gates"]))
    assert result.passed and result.tensors_equal, result.difference


@pytest.mark.parametrize("variant", INT8_VARIANTS, ids=str)
def test_the_torch_model_has_the_dequantized_weights(variant: Variant, tmp_path: Path) -> None:
    """The same numbers written as fp32 by hand produce the same outputs."""
    at = converted(variant, tmp_path, 1, index_price=0, precision="int8")
    rounded = Checkpoint.open(at["out"])
    weights = int8_weights(rounded.spec)
    model, floats = load_model(rounded).eval(), dict[str, torch.Tensor]()
    for name, info in rounded.tensors.items():
        value = rounded.read(name)
        if name in weights:
            value = dequantize(value, rounded.read(f"{name}_scale"))
        if not name.endswith("weight_scale"):
            floats[info.name] = torch.from_numpy(value.copy())
    config: dict[str, Any] = json.loads((at["out"] / "config.json").read_text())
    del config["quantization_config"]
    by_hand = type(model).from_pretrained(None, config=config_from(config), state_dict=floats)
    tokens = token_batch(variant, 0)
    with torch.no_grad():
        found, expected = model(tokens)[0], by_hand.float().eval()(tokens)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("llama-plain", ["lm_head"]),
        ("llama-classifier", ["lm_head", "score"]),
        ("bert-classifier", ["lm_head", "bert.pooler.dense", "classifier"]),
        ("modernbert-classifier", ["lm_head", "head.dense", "classifier"]),
        # Base models are saved without the stack's prefix.
        ("bert-pooled", ["lm_head", "pooler.dense"]),
    ],
)
def test_config_names_the_linears_that_stay_float(
    name: str, ignored: list[str], tmp_path: Path
) -> None:
    variant = next(v for v in VARIANTS if str(v) == name)
    at = converted(variant, tmp_path, 0, precision="int8")
    config = json.loads((at["out"] / "config.json").read_text())
    assert config["quantization_config"] == int8_config(ignored)
    assert config["dtype"] == "float32"
    assert "int8 (W8A8 in the compressed-tensors format)" in (at["out"] / "README.md").read_text()


def test_bf16_weights_are_rounded_as_they_are_and_the_rest_stays_bf16(tmp_path: Path) -> None:
    build(ZOO["llama"][0], 0).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out", precision="int8"))
    base, out = Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    values, scales = quantize(base.read(name), name)
    np.testing.assert_array_equal(out.read(name), values)
    np.testing.assert_array_equal(out.read(f"{name}_scale"), scales)
    assert {info.dtype for info in out.tensors.values()} == {"I8", "F32", "BF16"}
    assert out.tensors["lm_head.weight"].dtype == "BF16"
    result = verify(VerifyOptions(str(base.folder), str(out.folder)))
    assert result.passed and result.tensors_equal, result.difference


def test_models_that_cannot_be_int8_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(ZOO["gpt2"][0], 0).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(PlanError, match=r"int8: family gpt2 stores its matrices as \(in, out\)"):
        convert(ConvertOptions(str(tmp_path / "gpt2"), out, precision="int8"))
    assert not out.exists()
    build(ZOO["llama"][0], 0).save_pretrained(tmp_path / "llama")
    convert(ConvertOptions(str(tmp_path / "llama"), out, precision="int8"))
    with pytest.raises(CheckpointError, match="is quantized to int8; give the unquantized check"):
        convert(ConvertOptions(str(out), tmp_path / "again"))


def test_transformers_alone_refuses_index_vectors_in_int8(tmp_path: Path) -> None:
    at = converted(ZOO["llama"][0], tmp_path, 0, index_price=0, precision="int8")
    config = config_from(json.loads((at["out"] / "config.json").read_text()))
    with pytest.raises(
        CheckpointError, match=r"does not support linears with index vectors; load this"
    ):
        MODELS["llama"]["causal-lm"](config)
