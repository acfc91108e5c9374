"""Gates on inputs: the masked model is the model whose weights the gates were folded into."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import GateSite
from sgate_serve.plan import Masks
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.importance import fisher_scores
from sgate_serve.training.masks.masking import GateSources, constant_sources, masked_linears
from sgate_serve.training.tasks.evaluate import mean_loss, perplexity
from sgate_serve.training.tasks.training_data import Batch
from sgate_serve.training.train_options import COUPLED, ROW_COL
from tests.small_llama import dense_llama, random_tokens

BLOCKS = random_tokens(6 * 16).reshape(6, 16)


def fold(model: torch.nn.Module, masks: Masks) -> None:
    """Fold gates into weights and biases by hand: W' = diag(r) W diag(c), b' = r b."""
    with torch.no_grad():
        for name, gate in masks.items():
            linear = model.get_submodule(name)
            assert isinstance(linear, torch.nn.Linear)
            if gate.columns is not None:
                linear.weight.mul_(torch.tensor(gate.columns))
            if gate.rows is not None:
                linear.weight.mul_(torch.tensor(gate.rows)[:, None])
                if linear.bias is not None:
                    linear.bias.mul_(torch.tensor(gate.rows))


def spec_of(model: LlamaForCausalLM) -> ModelSpec:
    return ModelSpec.from_config(model.config.to_dict(), "test model")


@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_masked_loss_is_the_loss_of_folded_weights(granularity: str) -> None:
    model = dense_llama(attention_bias=True, mlp_bias=True)
    spec, rng = spec_of(model), np.random.default_rng(1)
    values = {
        site.gate.key: (rng.random(site.gate.num_gates) * (rng.random(site.gate.num_gates) > 0.4))
        for site in GRANULARITIES[granularity].sites(spec)
    }
    fp32 = {key: value.astype(np.float32) for key, value in values.items()}
    masks = Gates("test", "llama", granularity, "", fp32).masks(spec)
    folded = deepcopy(model)
    fold(folded, masks)
    dense = mean_loss(model, BLOCKS)
    with masked_linears(model, constant_sources(masks, torch.device("cpu"))):
        masked = mean_loss(model, BLOCKS)
    assert abs(masked - mean_loss(folded, BLOCKS)) < 1e-5
    assert abs(masked - dense) > 1e-2
    assert mean_loss(model, BLOCKS) == dense


def test_the_mean_loss_is_the_models_own_and_independent_of_the_batch() -> None:
    model = dense_llama()
    ids = torch.from_numpy(BLOCKS)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert abs(mean_loss(model, BLOCKS) - expected) < 1e-5
    assert abs(mean_loss(model, BLOCKS, batch_size=4) - expected) < 1e-5
    assert abs(perplexity(model, BLOCKS) - np.exp(expected)) < 1e-2


@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_fisher_scores_are_the_squared_slopes_of_the_loss(granularity: str) -> None:
    model = dense_llama(num_hidden_layers=2).double()
    # transformers computes norms and loss in fp32 even so: a small step would drown in rounding.
    spec, step = spec_of(model), 1e-2
    sites = GRANULARITIES[granularity].sites(spec)
    batches = torch.split(torch.from_numpy(BLOCKS), 3)
    given: list[Batch] = [{"input_ids": batch, "labels": batch} for batch in batches]
    scores = fisher_scores(model, sites, given)
    for site in sites:
        gate = site.gate
        for unit in (0, gate.num_gates - 1):
            slopes = [
                (
                    _nudged(model, gate, unit, 1 + step, batch)
                    - _nudged(model, gate, unit, 1 - step, batch)
                )
                / (2 * step)
                for batch in batches
            ]
            expected = np.mean(np.square(slopes))
            np.testing.assert_allclose(scores[gate.key][unit], expected, rtol=0.02, atol=1e-9)


def _nudged(
    model: torch.nn.Module, gate: GateSite, unit: int, value: float, batch: torch.Tensor
) -> float:
    mask = torch.ones(gate.num_gates * gate.repeat, dtype=torch.float64)
    mask[unit * gate.repeat : (unit + 1) * gate.repeat] = value
    sources = {gate.module: GateSources(**{gate.side: lambda: mask})}
    with torch.no_grad(), masked_linears(model, sources):
        return float(model(input_ids=batch, labels=batch).loss)
