"""One-shot importance scores: how much each gate matters before any training.

Fisher and Wanda scores take one pass over a few batches, the others none. Fisher scores also
initialize trained gates, which rank worse at the end from a uniform start.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sgate_serve.gates.keys import COLUMNS, GateSite
from sgate_serve.progress import counted
from sgate_serve.training.masks.masking import GateSources, masked_linears, sources_of_sites
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite
from sgate_serve.training.masks.reap import reap_scores
from sgate_serve.training.tasks.training_data import Batch, on_device
from sgate_serve.training.train_options import FISHER, MAGNITUDE, RANDOM, REAP, WANDA

SCORING_BATCHES = 24


def fisher_scores(
    model: nn.Module, sites: Sequence[PrunableSite], batches: Sequence[Batch]
) -> GateValues:
    """Return the mean over batches of (∂loss/∂gate)² at gate = 1, by gate key.

    The gate of a whole expert multiplies what the expert writes. So its score includes the products
    of its units' gradients, which a sum of their own scores lacks.
    """
    device = next(model.parameters()).device
    gates = [torch.ones(s.gate.num_gates, device=device, requires_grad=True) for s in sites]
    totals = [torch.zeros_like(gate, requires_grad=False) for gate in gates]
    with masked_linears(model, _sources(sites, gates)):
        for batch in counted(batches, "batch"):
            loss = model(**on_device(batch, device)).loss
            # No token of a batch may have chosen an expert.
            gradients = torch.autograd.grad(loss, gates, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.detach() ** 2
    scored = zip(sites, totals, strict=True)
    return {site.gate.key: (total / len(batches)).cpu().numpy() for site, total in scored}


def _sources(sites: Sequence[PrunableSite], gates: Sequence[Tensor]) -> dict[str, GateSources]:
    """Return what reads out the gates of each linear; experts are gated where they write."""
    pairs = list(zip(sites, gates, strict=True))
    sources = sources_of_sites(
        (site.gate, partial(gate.repeat_interleave, site.gate.repeat))
        for site, gate in pairs
        if not site.experts
    )
    for site, gate in pairs:
        for number, writer in enumerate(site.experts):
            sources[writer] = GateSources(columns=partial(gate.__getitem__, number))
    return sources


def wanda_scores(
    model: nn.Module, sites: Sequence[PrunableSite], batches: Sequence[Batch]
) -> GateValues:
    """Return Σ |W_ij| · ‖X_j‖ over the weights of each gate (Wanda, arXiv 2306.11695, structured).

    ‖X_j‖ is the root mean square of the linear's input j over the tokens of `batches`.
    """
    modules = {site.gate.module for site in sites}
    norms = input_norms(model, sorted(modules), batches)
    return _weight_scores(model, sites, lambda module, matrix: matrix.abs() * norms[module])


def magnitude_scores(model: nn.Module, sites: Sequence[PrunableSite]) -> GateValues:
    """Return Σ W_ij² over the weights of each gate."""
    return _weight_scores(model, sites, lambda module, matrix: matrix**2)


def random_scores(sites: Sequence[PrunableSite], seed: int) -> GateValues:
    generator = np.random.default_rng(seed)
    return {
        site.gate.key: generator.random(site.gate.num_gates).astype(np.float32) for site in sites
    }


def scores_of(
    method: str,
    model: nn.Module,
    sites: Sequence[PrunableSite],
    batches: Sequence[Batch],
    seed: int,
) -> GateValues:
    """Return the scores of a one-shot method, by gate key."""
    methods: Mapping[str, Callable[[], GateValues]] = {
        FISHER: lambda: fisher_scores(model, sites, batches),
        WANDA: lambda: wanda_scores(model, sites, batches),
        MAGNITUDE: lambda: magnitude_scores(model, sites),
        RANDOM: lambda: random_scores(sites, seed),
        REAP: lambda: reap_scores(model, sites, batches),
    }
    return methods[method]()


def input_norms(
    model: nn.Module, modules: Sequence[str], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return the root mean square [in] of each module's inputs, without padding."""
    means = _input_means(model, modules, batches, torch.square)
    return {name: mean.sqrt() for name, mean in means.items()}


def input_means(
    model: nn.Module, modules: Sequence[str], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return the mean [in] of each module's inputs, without padding."""
    return _input_means(model, modules, batches, lambda inputs: inputs)


@torch.no_grad()
def _input_means(
    model: nn.Module,
    modules: Sequence[str],
    batches: Sequence[Batch],
    function: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the mean of a function of each module's inputs over all tokens of the batches."""
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    num_tokens, is_token = 0.0, torch.empty(0)

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = (function(inputs[0].float()) * is_token).flatten(0, -2).sum(dim=0)
        sums[name] = sums[name] + values if name in sums else values

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(record, name))
        for name in modules
    ]
    try:
        for batch in counted(batches, "batch"):
            given = on_device(batch, device)
            mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
            is_token = mask[..., None].float()
            num_tokens += float(is_token.sum())
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / num_tokens for name, total in sums.items()}


@torch.no_grad()
def _weight_scores(
    model: nn.Module,
    sites: Sequence[PrunableSite],
    importance: Callable[[str, Tensor], Tensor],
) -> GateValues:
    """Sum the importance [out, in] of weights over each gate's rows or columns."""
    scores = {}
    for site in sites:
        matrix = importance(site.gate.module, matrix_of(model, site.gate))
        sums = matrix.sum(dim=0 if site.gate.side == COLUMNS else 1)
        gates = sums.view(site.gate.num_gates, site.gate.repeat).sum(dim=1)
        scores[site.gate.key] = gates.float().cpu().numpy()
    return scores


def matrix_of(model: nn.Module, gate: GateSite) -> Tensor:
    """Return the weights [out, in] of a gate's linear."""
    return linear_matrix(model.get_submodule(gate.module))


def linear_matrix(linear: nn.Module) -> Tensor:
    """Return the weights [out, in] of a linear, which GPT-2 stores as [in, out]."""
    weight = linear.get_parameter("weight")
    return weight if isinstance(linear, nn.Linear) else weight.T
