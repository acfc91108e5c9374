"""Scores of whole experts, against stock transformers models and the formulas."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from sgate_serve.training.masks.importance import fisher_scores
from sgate_serve.training.masks.prunable_sites import expert_sites
from sgate_serve.training.masks.reap import reap_scores
from sgate_serve.training.tasks.training_data import Batch
from tests.small_llama import random_tokens
from tests.training.small_mixtures import MIXTURES, small_mixture, unstacked

IDS = torch.from_numpy(random_tokens(2 * 12).reshape(2, 12))


def mixtures_of(stock: torch.nn.Module) -> Mapping[int, Any]:
    """Return the stock blocks that hold experts, by layer."""
    layers: Any = stock.get_submodule("model.layers")
    return {i: layer.mlp for i, layer in enumerate(layers) if hasattr(layer.mlp, "experts")}


@pytest.mark.parametrize("family", MIXTURES)
def test_reap_is_the_mean_share_times_the_norm_over_the_tokens_of_an_expert(family: str) -> None:
    stock = small_mixture(family)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    batches: list[Batch] = [{"input_ids": IDS, "attention_mask": mask}, {"input_ids": IDS[:, :5]}]
    model, spec = unstacked(stock)
    found = reap_scores(model, expert_sites(spec), batches)
    assert len(found) == 2

    inputs: dict[int, list[torch.Tensor]] = {index: [] for index in mixtures_of(stock)}
    for index, block in mixtures_of(stock).items():
        block.register_forward_pre_hook(lambda _, args, to=inputs[index]: to.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            stock(**batch)
    is_token = mask.bool()
    for index, block in mixtures_of(stock).items():
        first, second = inputs[index]
        expected = reap(stock.config, block, torch.cat([first[is_token], second.flatten(0, 1)]))
        (key,) = (key for key in found if f"layers.{index}." in key)
        np.testing.assert_allclose(found[key], expected, rtol=1e-4)


@torch.no_grad()
def reap(config: Any, block: Any, hidden: torch.Tensor) -> list[float]:
    """Return the score of each expert for hidden states [tokens, hidden], by the formula."""
    router = block.router if hasattr(block, "router") else block.gate
    logits = linear(hidden, router.weight, getattr(router, "bias", None))
    correction = getattr(router, "e_score_correction_bias", None)
    shares = logits.softmax(-1) if correction is None else logits.sigmoid()
    choice = shares if correction is None else shares + correction
    chosen = torch.zeros_like(shares, dtype=torch.bool)
    chosen.scatter_(1, choice.topk(config.num_experts_per_tok).indices, value=True)
    if getattr(config, "norm_topk_prob", True):
        shares = shares / (shares * chosen).sum(-1, keepdim=True)
    shares = shares * getattr(config, "routed_scaling_factor", 1)
    scores = []
    for expert in range(len(block.experts.down_proj)):
        norms = written(block.experts, expert, hidden).norm(dim=-1)
        weighted = (shares[:, expert] * norms)[chosen[:, expert]]
        scores.append(float(weighted.mean()) if len(weighted) else 0.0)
    return scores


def written(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """Return what an expert of a stock class writes for hidden states [tokens, hidden]."""
    gate_up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
    if not hasattr(experts, "alpha"):
        gate, up = linear(hidden, gate_up).chunk(2, dim=-1)
        return linear(torch.nn.functional.silu(gate) * up, down)
    both = hidden @ gate_up + experts.gate_up_proj_bias[expert]
    gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2]
    units = (up.clamp(-experts.limit, experts.limit) + 1) * gate * (experts.alpha * gate).sigmoid()
    output: torch.Tensor = units @ down + experts.down_proj_bias[expert]
    return output


def test_the_fisher_score_is_the_squared_slope_of_the_loss_along_what_an_expert_writes() -> None:
    stock = small_mixture("qwen3_moe")
    # No token of the second batch reaches some experts.
    batches: list[Batch] = [{"input_ids": ids, "labels": ids} for ids in (IDS, IDS[:1, :2])]
    model, spec = unstacked(stock)
    found = fisher_scores(model, expert_sites(spec), batches)
    for index, block in mixtures_of(stock).items():
        slopes, weight = [], block.experts.down_proj
        for batch in batches:
            (gradient,) = torch.autograd.grad(stock(**batch).loss, weight)
            # Of the loss by a factor on each expert's last matrix.
            slopes.append((gradient * weight).sum(dim=(1, 2)).detach().numpy())
        assert (slopes[1] == 0).any()
        expected = np.mean(np.square(slopes), axis=0)
        np.testing.assert_allclose(found[f"model.layers.{index}.experts"], expected, rtol=1e-3)
