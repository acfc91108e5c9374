"""Bisection to the first differing layer, in every family."""

from pathlib import Path

import numpy as np
import pytest
import torch

from converters.convert import ConvertOptions, convert, open_masked
from sgate_serve.architecture.family import DOWN, OUTPUT
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.plan import receiving_tensor
from sgate_serve.verify.bisection import first_different_layer
from tests.converters.exactness import Example, write_base, write_random_gates
from tests.families.zoo import ZOO, token_batch
from tests.small_llama import dense_llama, save


@pytest.mark.parametrize("family", ZOO)
def test_a_changed_weight_is_bisected_to_its_layer(family: str, tmp_path: Path) -> None:
    variant = ZOO[family][0]
    base, gates, out = (tmp_path / name for name in ("base", "gates", "out"))
    write_base(Example(variant, dtype=torch.float32), base)
    write_random_gates(Checkpoint.open(base), gates, ("row-col", 0.25), seed=0)
    plan = convert(ConvertOptions(str(base), out, gates, index_price=0))
    reference = TorchModel.masked_dense(open_masked(base, gates))
    engine, prompt = TorchModel.converted(out), token_batch(variant, 0)[0].numpy()
    nothing = "after the last layer: the final norm or the head"
    assert first_different_layer(reference, engine, prompt, plan) == nothing
    parameters = dict(engine.model.named_parameters())
    writers = [part.module for role in (DOWN, OUTPUT) for part in reference.spec.parts(1, role)]
    prefix = f"{reference.spec.family.prefix}."
    names = [f"{name.removeprefix(prefix)}.weight" for name in writers]
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(tuple(names)):
                parameter += 0.5
    found = first_different_layer(reference, engine, prompt, plan)
    assert found.startswith("first differing layer: 1, by"), found


def test_layers_that_hold_a_moved_constant_early_are_passed_over(tmp_path: Path) -> None:
    """The MLPs of layers 1 and 2 write only biases, which move before the last living block."""
    model = dense_llama(mlp_bias=True)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    save(model, tmp_path / "base")
    plan = convert(ConvertOptions(str(tmp_path / "base"), tmp_path / "out"))
    reference = TorchModel.masked_dense(open_masked(tmp_path / "base", None))
    received = {receiving_tensor(fold, reference.spec) for fold in plan.folds}
    assert received == {"model.layers.0.mlp.down_proj.bias"}
    engine, prompt = TorchModel.converted(tmp_path / "out"), np.arange(9)
    streams = zip(reference.residuals(prompt), engine.residuals(prompt), strict=True)
    is_equal = [bool(np.allclose(one, other, atol=1e-4)) for one, other in streams]
    assert is_equal == [False, False, True]
    found = first_different_layer(reference, engine, prompt, plan)
    assert found == "after the last layer: the final norm or the head"
