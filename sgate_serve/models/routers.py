"""The routers of mixtures: narrowed ones, and how the stock ones of transformers choose.

A router is one module, with the row of each expert as its weight; or, where experts are a branch
beside an MLP (Gemma 4), a module that holds such a linear and scales what it reads and gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from sgate_serve.architecture.family import LEAST_SUM
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.models.names import name_in

# The buffer of a router that it adds to its scores for the choice alone.
CORRECTION = "e_score_correction_bias"
# What a router that holds a linear multiplies the shares of each expert by.
SHARE_SCALE = "per_expert_scale"


class CorrectedRouter(nn.Module):
    """A router of sigmoid scores, which a correction changes for the choice alone.

    It computes what the stock one does without groups, and also chooses among fewer experts.
    """

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        shape = spec.layers[index]
        self.num_experts, self.top_k = len(shape.experts), shape.top_k
        self.norm_topk_prob, self.routed_scaling_factor = spec.norm_topk_prob, spec.routed_scaling
        self.weight = nn.Parameter(torch.empty(self.num_experts, spec.hidden_size))
        self.e_score_correction_bias = nn.Buffer(torch.zeros(self.num_experts))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits [T, experts], and weights and numbers of the chosen ones [T, top_k]."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = nn.functional.linear(x.type(torch.float32), self.weight.type(torch.float32))
        scores = logits.sigmoid()
        choice = scores + self.e_score_correction_bias
        index = torch.topk(choice, self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, index)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + LEAST_SUM)
        return logits, weights * self.routed_scaling_factor, index


class ScaledRouter(nn.Module):
    """A router beside an MLP: it normalizes the stream itself, and scales the shares of experts.

    It computes what the stock one does over the stream before dimensions were removed.
    """

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        shape = spec.layers[index]
        self.num_experts, self.top_k = len(shape.experts), shape.top_k
        self.norm_size, self.eps = spec.norm_size, spec.norm_eps
        self.proj = nn.Linear(spec.hidden_size, self.num_experts, bias=False)
        self.scale = nn.Parameter(torch.empty(spec.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.empty(self.num_experts))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return scores [T, experts], and weights and numbers of the chosen ones [T, top_k]."""
        wide = hidden_states.to(torch.float32)
        mean = wide.pow(2).sum(-1, keepdim=True) / self.norm_size
        x = (wide * torch.rsqrt(mean + self.eps)).to(hidden_states.dtype)
        logits = self.proj(x * self.scale * self.norm_size**-0.5)
        scores = torch.softmax(logits, dim=-1, dtype=torch.float32)
        weights, index = torch.topk(scores, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return scores, weights * self.per_expert_scale[index], index


def narrow_router(model: Any, spec: ModelSpec, index: int) -> None:
    """Give a stock layer a router with the rows and the choice of its own experts, in place."""
    mixture, shape = spec.family.mixture, spec.layers[index]
    assert mixture is not None, "only such a family has experts"
    name = name_in(model, spec.family, spec.family.router_name(index))
    if spec.correction(index) is not None:
        model.set_submodule(name, CorrectedRouter(spec, index))
    elif mixture.branch is not None:
        model.set_submodule(name.rpartition(".")[0], ScaledRouter(spec, index))
    else:
        router = model.get_submodule(name)
        if mixture.has_biased_router:
            router.bias = nn.Parameter(torch.empty(len(shape.experts)))
        router.weight = nn.Parameter(torch.empty(len(shape.experts), spec.hidden_size))
        router.num_experts, router.top_k = len(shape.experts), shape.top_k
        router.hidden_dim = spec.hidden_size


def choice_of(model: Any, name: str) -> tuple[int, int, Any]:
    """Return among how many experts the router of this name chooses, how many, and the router."""
    router = model.get_submodule(name)
    if not isinstance(router, nn.Linear):
        return router.num_experts, router.top_k, router
    owner = model.get_submodule(name.rpartition(".")[0])
    top_k = owner.top_k if isinstance(owner, ScaledRouter) else owner.config.top_k_experts
    return router.out_features, top_k, owner


def close_experts(router: Any, closed: torch.Tensor) -> None:
    """Make the logits of closed experts -infinity in a filled stock router, in place.

    Its forward stays the stock one: one more input, which is always 1, has the weight -infinity for
    closed experts and 0 for the others. A score of 0 may still be chosen where a correction is
    added, so that is -infinity, too. A linear that a router holds is changed in the same way.
    """
    if hasattr(router, CORRECTION):
        router.e_score_correction_bias[closed] = -torch.inf
    column = torch.where(closed, -torch.inf, 0.0).to(router.weight)[:, None]
    router.weight = nn.Parameter(torch.cat([router.weight, column], dim=1))
    if not isinstance(router, nn.Linear):
        router.hidden_dim += 1

    def with_one(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden = args[0]
        return (torch.cat([hidden, hidden.new_ones((*hidden.shape[:-1], 1))], dim=-1),)

    router.register_forward_pre_hook(with_one)


class RoutingMargins:
    """How clearly the routers of a stock model choose, of the last forward of a single text.

    A margin is that of the last chosen expert's logit over the first that is not chosen, relative
    to the largest logit; with a correction, that of the scores that it was added to. `least` [T] is
    the least of all layers, None before a forward.
    """

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        self.least: torch.Tensor | None = None
        for index, shape in enumerate(spec.layers):
            if shape.experts:
                name = name_in(model, spec.family, spec.family.router_name(index))
                router: nn.Module = model.get_submodule(name)
                router.register_forward_hook(partial(self._chosen, shape.top_k))
        model.register_forward_pre_hook(self._begin)

    def _begin(self, module: Any, args: Any) -> None:
        self.least = None

    def _chosen(self, top_k: int, router: Any, args: Any, output: Any) -> None:
        logits = (output if isinstance(router, nn.Linear) else output[0]).float()
        if top_k >= logits.shape[-1]:
            return
        choice = logits
        if hasattr(router, CORRECTION):
            choice = logits.sigmoid() + router.e_score_correction_bias
        best = choice.topk(top_k + 1, dim=-1).values
        scale = logits.masked_fill(logits.isinf(), 0).abs().amax(dim=-1).clamp(min=1)
        # Where fewer are open than are chosen, both are -infinity, and neither counts.
        margin = ((best[:, -2] - best[:, -1]) / scale).nan_to_num(nan=torch.inf, posinf=torch.inf)
        self.least = margin if self.least is None else torch.minimum(self.least, margin)


def is_router(model: nn.Module, name: str) -> bool:
    """Say whether the module of this name is what `chosen_among` takes."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return hasattr(model.get_submodule(name), "top_k") or hasattr(owner, SHARE_SCALE)


@contextmanager
def chosen_among(router: Any, is_open: torch.Tensor) -> Iterator[None]:
    """Within the context a stock router chooses among the open experts, by all of its weights.

    The result is that of `close_experts`; gradients reach the router's own parameter.
    """
    numbers = torch.nonzero(is_open)[:, 0]

    def forward(hidden: torch.Tensor) -> Any:
        if isinstance(router, nn.Linear):
            logits = nn.functional.linear(hidden, router.weight)
            return logits.masked_fill(~is_open.to(hidden.device), -torch.inf)
        narrow = _OfOpenExperts(router, numbers.to(hidden.device))
        choose: Any = CorrectedRouter if hasattr(router, CORRECTION) else type(router)
        logits, weights, index = choose.forward(narrow, hidden)
        return logits, weights, narrow.numbers[index]

    router.forward = forward
    try:
        yield
    finally:
        del router.forward


class _OfOpenExperts:
    """A view of a stock router that has rows for some experts only."""

    def __init__(self, router: Any, numbers: torch.Tensor) -> None:
        self._router, self.numbers = router, numbers
        self.weight = router.weight[numbers]
        if hasattr(router, "bias"):
            self.bias = router.bias[numbers]
        if hasattr(router, CORRECTION):
            self.e_score_correction_bias = router.e_score_correction_bias[numbers]
        self.num_experts, self.top_k = len(numbers), min(router.top_k, len(numbers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)
