"""Bisection after residual dimensions were removed: the plan says which ones to compare."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.loaders.logits import load_logits_model
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.json_form import read_plan
from sgate_serve.verify.bisection import first_different_layer
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.small_llama import dense_llama, random_tokens, save
from tests.verify.test_verify import tamper

DEAD = [0, 17, 47]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A base that never writes three residual dimensions, and its conversion, which lacks them."""
    base = save(dense_llama(), tmp_path / "base")
    tensors = {name: base.read(name).copy() for name in base.tensors}
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            tensor[:, DEAD] = 0
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[DEAD] = 0
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    convert(ConvertOptions(str(base.folder), tmp_path / "out", to=("hf", "onnx")))
    return {name: tmp_path / name for name in ("base", "out")}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_streams_are_compared_at_the_dimensions_that_are_left(
    folders: dict[str, Path], engine: str
) -> None:
    out = Checkpoint.open(folders["out"])
    reference = TorchModel.masked_dense(open_masked(folders["base"], None))
    plan = read_plan(folders["out"] / PLAN_FILE)
    assert plan.hidden == tuple(np.setdiff1d(np.arange(48), DEAD).tolist())
    found = first_different_layer(
        reference, load_logits_model(engine, out, 9), random_tokens(9), plan
    )
    assert found == "after the last layer: the final norm or the head"


def test_without_a_plan_a_narrow_stream_cannot_be_bisected(folders: dict[str, Path]) -> None:
    (folders["out"] / PLAN_FILE).unlink()
    tamper(folders["out"], "model.layers.1.mlp.down_proj.weight")
    result = verify(VerifyOptions(str(folders["base"]), str(folders["out"]), None, "torch"))
    assert not result.passed
    assert result.difference == ("the residual stream is 45 wide and no plan says which dimensions")
