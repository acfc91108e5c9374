"""Recovery under frozen masks: the replacement weights are those that were trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Masks
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.coupled_selection import select_units
from sgate_serve.training.masks.masking import constant_sources, masked_linears
from sgate_serve.training.masks.prunable_sites import unit_sites
from sgate_serve.training.masks.removal_target import WeightTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.phases.recovery import recover
from sgate_serve.training.phases.trainer import Phase
from sgate_serve.training.phases.tuning import Tuning
from sgate_serve.training.tasks.training_data import TrainingData, block_samples
from sgate_serve.training.train_options import COUPLED, LORA, ROW_COL
from tests.small_llama import dense_llama, random_tokens
from tests.training.masks.test_coupled_selection import random_scores

RANK = 3
# Row and column gates reach the target without closing a head.
WIDE = {"intermediate_size": 64}


@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_merged_lora_is_the_base_plus_what_was_trained(tmp_path: Path, granularity: str) -> None:
    model = dense_llama(**WIDE).requires_grad_(False)
    spec = ModelSpec.from_config(model.config.to_dict(), "test model")
    kind = GRANULARITIES[granularity]
    masks = kind.select(
        spec, Ranking(random_scores(kind.sites(spec))), WeightTarget(0.3), "base"
    ).gates.masks(spec)
    blocks = random_tokens(12 * 8).reshape(12, 8)
    phase = Phase(
        folder=tmp_path,
        steps=4,
        batch_size=4,
        learning_rate=0.02,
        schedule="constant",
        warmup_steps=0,
        save_steps=100,
        seed=0,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples = block_samples(blocks)
    tuning = Tuning(LORA, RANK, seed=0)
    changed = recover(model, spec, masks, tuning, TrainingData(samples, samples), phase)
    deltas = {name: model.get_parameter(name).detach().numpy() for name in changed}
    trained = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    moved = 0.0
    for name, delta in deltas.items():
        stem = f"model.{name.removesuffix('.weight')}"
        down = trained[f"{stem}.lora_A.default.weight"]
        up = trained[f"{stem}.lora_B.default.weight"]
        assert down.shape[0] == RANK
        # lora_alpha is twice the rank, so the product counts twice.
        # Closed units are not there in training.
        expected = before[name].clone()
        expected[trained_places(masks, name, expected)] += (2 * up @ down).flatten()
        np.testing.assert_allclose(delta, expected.numpy(), atol=1e-6)
        moved = max(moved, float(np.abs(delta - before[name].numpy()).max()))
    assert moved > 1e-3
    restored = dense_llama(**WIDE)
    with torch.no_grad():
        for name, delta in deltas.items():
            restored.get_parameter(name).copy_(torch.from_numpy(np.array(delta)))
        ids, sources = torch.from_numpy(blocks), constant_sources(masks, torch.device("cpu"))
        with masked_linears(model, sources), masked_linears(restored, sources):
            difference = model.eval()(ids).logits - restored(ids).logits
    assert float(difference.abs().max()) < 1e-5


def test_closed_units_do_not_move(tmp_path: Path) -> None:
    model = dense_llama().requires_grad_(False)
    spec = ModelSpec.from_config(model.config.to_dict(), "test model")
    masks = select_units(
        spec, Ranking(random_scores(unit_sites(spec))), WeightTarget(0.3), "base"
    ).gates.masks(spec)
    columns = masks["model.layers.0.mlp.down_proj"].columns
    assert columns is not None and not columns.all()
    ids = torch.from_numpy(random_tokens(16).reshape(2, 8))
    up = model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(True)
    with masked_linears(model, constant_sources(masks, torch.device("cpu"))):
        loss = model(input_ids=ids, labels=ids).loss
        (gradient,) = torch.autograd.grad(loss, [up])
    assert not gradient[torch.from_numpy(columns == 0)].any()
    assert gradient[torch.from_numpy(columns == 1)].any()


def trained_places(masks: Masks, name: str, weight: Tensor) -> Tensor:
    """Return which elements of a weight [out, in] belong to units that the mask leaves open."""
    block, _, _ = name.removesuffix(".weight").rpartition(".")
    writer = masks.get(f"{block}.down_proj")
    if writer is None or writer.columns is None:
        return torch.ones_like(weight, dtype=torch.bool)
    is_open = torch.from_numpy(writer.columns != 0)
    return (is_open if "down_proj" in name else is_open[:, None]).expand_as(weight)
