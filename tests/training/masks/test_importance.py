"""One-shot scores against sums worked out with numpy."""

import numpy as np
import pytest
import torch

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.importance import magnitude_scores, wanda_scores
from sgate_serve.training.tasks.training_data import Batch
from sgate_serve.training.train_options import COUPLED, ROW_COL
from tests.small_llama import dense_llama, random_tokens

IDS = torch.from_numpy(random_tokens(4 * 8).reshape(4, 8))
BATCHES: list[Batch] = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]


@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_one_shot_scores_are_sums_over_what_a_gate_covers(granularity: str) -> None:
    model = dense_llama()
    sites = GRANULARITIES[granularity].sites(spec_of(model))
    wanda, magnitude = wanda_scores(model, sites, BATCHES), magnitude_scores(model, sites)
    for site in sites:
        gate = site.gate
        weight = model.get_parameter(f"{gate.module}.weight").detach().numpy()
        norms = np.sqrt((hidden_inputs(model, gate.module) ** 2).mean(axis=(0, 1)))
        axis = 0 if gate.side == "columns" else 1
        for scores, importance in ((wanda, abs(weight) * norms), (magnitude, weight**2)):
            expected = importance.sum(axis=axis).reshape(gate.num_gates, -1).sum(axis=1)
            np.testing.assert_allclose(scores[gate.key], expected, rtol=1e-4)


def test_padding_counts_for_no_score() -> None:
    model = dense_llama()
    sites = GRANULARITIES[COUPLED].sites(spec_of(model))
    padded = torch.cat([IDS, torch.zeros(4, 3, dtype=torch.int64)], dim=1)
    mask = (torch.arange(11) < 8).long().expand(4, 11)
    expected = wanda_scores(model, sites, [{"input_ids": IDS}])
    found = wanda_scores(model, sites, [{"input_ids": padded, "attention_mask": mask}])
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4)


def spec_of(model: torch.nn.Module) -> ModelSpec:
    return ModelSpec.from_config(model.config.to_dict(), "test model")  # type: ignore[operator, union-attr]


@torch.no_grad()
def hidden_inputs(model: torch.nn.Module, name: str) -> np.ndarray:
    """Return the inputs [batch, seq, in] of one linear for IDS."""
    found: list[np.ndarray] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: found.append(inputs[0].numpy().copy())
    )
    model(input_ids=IDS)
    handle.remove()
    return found[0]
