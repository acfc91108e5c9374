"""Refitted linears against numpy's least squares on activations collected by hooks of our own."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.models.experts import unstack
from sgate_serve.plan import Gate, Masks
from sgate_serve.training.masks.importance import linear_matrix
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.masks.prunable_sites import unit_sites
from sgate_serve.training.masks.reconstruction import RIDGE, reconstruct
from sgate_serve.training.phases.dense import spec_of
from sgate_serve.training.tasks.training_data import Batch
from tests.families.zoo import ZOO, build

NUM_ROWS, LENGTH, PADDED = 4, 24, 5


@pytest.mark.parametrize("family", ZOO)
def test_every_refitted_linear_solves_its_ridge_regression(family: str) -> None:
    model = cacheless(family)
    spec = spec_of(model)
    masks = some_masks(spec)
    refitted = [name for name in masks if spec.expert_of(name) is None]
    before = {name: parameters(model.get_submodule(name)) for name in refitted}
    batches = some_batches(spec)
    changed = reconstruct(model, spec, masks, batches)
    assert changed == tuple(
        f"{name}.{part}"
        for name in refitted
        for part, _ in model.get_submodule(name).named_parameters()
    )
    for name, (old_weight, old_bias) in before.items():
        inputs = np.concatenate([unmasked_inputs(model, masks, name, batch) for batch in batches])
        kept = columns_of(masks[name]) != 0
        wanted = inputs @ old_weight.T + old_bias
        center = inputs[:, kept].mean(axis=0) if old_bias.any() else 0.0
        shift = wanted.mean(axis=0) if old_bias.any() else 0.0
        # The ridge as further rows of the same least squares.
        variance = ((inputs[:, kept] - center) ** 2).mean()
        ridge = np.sqrt(RIDGE * variance * len(inputs)) * np.eye(kept.sum())
        rows = np.concatenate([inputs[:, kept] - center, ridge])
        targets = np.concatenate([wanted - shift, ridge @ old_weight[:, kept].T])
        expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        weight, bias = parameters(model.get_submodule(name))
        np.testing.assert_allclose(weight[:, kept], expected, rtol=2e-3, atol=1e-3)
        assert not weight[:, ~kept].any()
        if old_bias.any():
            np.testing.assert_allclose(bias, shift - expected @ center, rtol=2e-3, atol=1e-3)


def test_open_gates_multiply_what_is_refitted() -> None:
    outputs = []
    for value in (1.0, 0.5):
        model = cacheless("llama")
        spec = spec_of(model)
        masks = {
            name: Gate(columns=np.float32(value) * columns_of(gate))
            for name, gate in some_masks(spec).items()
        }
        batches = some_batches(spec)
        reconstruct(model, spec, masks, batches)
        with masked_by(model, masks), torch.no_grad():
            outputs.append(model(**batches[0]).logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def cacheless(family: str) -> Any:
    """Build a model as training opens it."""
    variant = next(variant for variant in ZOO[family] if variant.task != "base")
    model: Any = build(variant, seed=0).eval()
    model.config.use_cache = False
    unstack(model, spec_of(model))
    return model


def some_masks(spec: ModelSpec) -> Masks:
    """Close a third of the units of every block but those of the first MLP."""
    masks = {}
    for site in unit_sites(spec)[1:]:
        values = np.ones(site.gate.num_gates, np.float32)
        values[:: 3 if values.size > 2 else 2] = 0
        masks[site.gate.module] = Gate(columns=values.repeat(site.gate.repeat))
    order = [name for index in range(len(spec.layers)) for name in spec.modules(index)]
    return {name: masks[name] for name in order if name in masks}


def columns_of(gate: Gate) -> NDArray[np.float32]:
    assert gate.columns is not None
    return gate.columns


def some_batches(spec: ModelSpec) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(NUM_ROWS, LENGTH, dtype=torch.int64)
    mask[0, -PADDED:] = 0
    return [
        {
            "input_ids": torch.randint(3, spec.vocab_size, mask.shape, generator=generator),
            "attention_mask": mask,
        }
        for _ in range(2)
    ]


def parameters(linear: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [out, in] and the bias [out], 0 without one, in float64."""
    weight, bias = linear_matrix(linear), linear.bias
    zero = torch.zeros(len(weight)) if bias is None else bias
    return weight.detach().double().numpy().copy(), zero.detach().double().numpy().copy()


@torch.no_grad()
def unmasked_inputs(model: Any, masks: Masks, name: str, batch: Batch) -> np.ndarray:
    """Return the inputs [tokens, in] of a linear of the masked model, before its own mask."""
    found: list[Tensor] = []
    others = {other: gate for other, gate in masks.items() if other != name}

    def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0][batch["attention_mask"].bool()])

    handle = model.get_submodule(name).register_forward_pre_hook(record)
    with masked_by(model, others):
        model(**batch)
    handle.remove()
    return found[0].double().numpy()
