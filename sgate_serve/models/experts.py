"""The experts of mixtures: narrowed ones, and where the stock classes of transformers keep theirs.

The files of most families hold one matrix for each linear of each expert; the stock classes stack
those of all experts of a layer, which have the same width there: in most, [experts, 2 · units,
hidden] with the rows of the gate first, and [experts, hidden, units].
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights

from sgate_serve.architecture.family import DOWN, GATE, LEAST_SUM, MLP, UP, Family
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.stacks import Slot, class_slot, slot_of, stack_shape
from sgate_serve.models.names import name_in

# The buffer of a router that it adds to its scores for the choice alone.
CORRECTION = "e_score_correction_bias"


class NarrowExperts(nn.Module):
    """Experts of different widths; an expert without units adds nothing.

    It stands in for a stock class's stacked experts, and is given the same arguments.
    """

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        assert spec.family.mixture is not None
        names = spec.family.mixture.linears
        self.names, self.act_fn = names, ACT2FN[spec.activation]
        self.clamped = spec.clamped_units
        self.num_experts = len(spec.layers[index].experts)
        for number, units in enumerate(spec.layers[index].experts):
            expert = nn.Module()
            for role in (GATE, UP, DOWN) if units else ():
                shape = (units, spec.hidden_size) if role == DOWN else (spec.hidden_size, units)
                bias = spec.has_bias(index, role)
                expert.add_module(names[role], nn.Linear(*shape, bias=bias))
            self.add_module(str(number), expert)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum [T, H] over each token's experts; index and weights are [T, top_k]."""
        total = torch.zeros_like(hidden_states)
        for number in range(self.num_experts):
            linears = dict(self.get_submodule(str(number)).named_children())
            tokens, places = torch.where(top_k_index == number)
            # In training every parameter takes part, also that of an expert without tokens.
            if linears and (len(tokens) or self.training):
                x = hidden_states[tokens]
                gate, up, down = (linears[self.names[role]] for role in (GATE, UP, DOWN))
                y = down(self._units(gate(x), up(x))) * top_k_weights[tokens, places, None]
                total.index_add_(0, tokens, y.to(total.dtype))
        return total

    def _units(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.clamped is None:
            active: torch.Tensor = self.act_fn(gate)
            return active * up
        gate, limit = gate.clamp(max=self.clamped.limit), self.clamped.limit
        return (up.clamp(-limit, limit) + 1) * (gate * torch.sigmoid(gate * self.clamped.alpha))


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


def narrow_router(block: Any, spec: ModelSpec, index: int) -> None:
    """Give a stock mixture a router with the rows and the choice of its own experts, in place."""
    if spec.correction(index) is not None:
        block.gate = CorrectedRouter(spec, index)
        return
    assert spec.family.mixture is not None, "only such a family has experts"
    shape = spec.layers[index]
    router = block.get_submodule(spec.family.mixture.router.rpartition(".")[2])
    if spec.family.mixture.has_biased_router:
        router.bias = nn.Parameter(torch.empty(len(shape.experts)))
    router.weight = nn.Parameter(torch.empty(len(shape.experts), spec.hidden_size))
    router.num_experts, router.top_k = len(shape.experts), shape.top_k
    router.hidden_dim = spec.hidden_size


def close_experts(router: Any, closed: torch.Tensor) -> None:
    """Make the logits of closed experts -infinity in a filled stock router, in place.

    Its forward stays the stock one: one more input, which is always 1, has the weight -infinity for
    closed experts and 0 for the others. A score of 0 may still be chosen where a correction is
    added, so that is -infinity, too.
    """
    if hasattr(router, CORRECTION):
        router.e_score_correction_bias[closed] = -torch.inf
    column = torch.where(closed, -torch.inf, 0.0).to(router.weight)[:, None]
    router.weight = nn.Parameter(torch.cat([router.weight, column], dim=1))
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
                model.get_submodule(name).register_forward_hook(self._chosen)
        model.register_forward_pre_hook(self._begin)

    def _begin(self, module: Any, args: Any) -> None:
        self.least = None

    def _chosen(self, router: Any, args: Any, output: Any) -> None:
        logits = output[0].float()
        if router.top_k >= logits.shape[-1]:
            return
        choice = logits
        if hasattr(router, CORRECTION):
            choice = logits.sigmoid() + router.e_score_correction_bias
        best = choice.topk(router.top_k + 1, dim=-1).values
        scale = logits.masked_fill(logits.isinf(), 0).abs().amax(dim=-1).clamp(min=1)
        # Where fewer are open than are chosen, both are -infinity, and neither counts.
        margin = ((best[:, -2] - best[:, -1]) / scale).nan_to_num(nan=torch.inf, posinf=torch.inf)
        self.least = margin if self.least is None else torch.minimum(self.least, margin)


def without_router_loss(config: Any) -> dict[str, bool]:
    """Return the argument that keeps a model from computing its routers' own loss.

    Some configs ask for it; the stock one cannot count experts whose number differs by layer.
    """
    name = "output_router_logits"
    return {name: False} if hasattr(config, name) else {}


def is_router(module: nn.Module) -> bool:
    """Say whether a module chooses experts; a linear never does."""
    return hasattr(module, "top_k")


@contextmanager
def chosen_among(router: Any, is_open: torch.Tensor) -> Iterator[None]:
    """Within the context a stock router chooses among the open experts, by all of its weights.

    The result is that of `close_experts`; gradients reach the router's own parameter.
    """
    numbers = torch.nonzero(is_open)[:, 0]

    def forward(hidden: torch.Tensor) -> Any:
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


@torch.no_grad()
def unstack(model: Any, spec: ModelSpec) -> None:
    """Replace the stacked experts of a stock model by linears of their own, in place.

    Its modules then have the names that files have. The model must have a head.
    """
    mixture = spec.family.mixture
    for index, shape in enumerate(spec.layers):
        if mixture is None or not shape.experts:
            continue
        layer = model.get_submodule(spec.family.layer_name(index))
        for own, stock in mixture.renames.items():
            # The stock forward still finds it, under a name that is not that of a submodule.
            block = layer._modules.pop(stock)
            layer.add_module(own, block)
            layer.__dict__[stock] = block
        block = model.get_submodule(spec.family.block_modules(index, MLP)[0])
        with no_init_weights():
            narrow = NarrowExperts(spec, index).to(block.experts.down_proj)
        for name, weight in narrow.named_parameters():
            stack, select = stacked_place(f"experts.{name}", spec.family)
            weight.copy_(select(block.get_parameter(stack)))
        block.experts = narrow.train(block.training)


def stacked_place(name: str, family: Family) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the stock parameter that holds an expert's tensor, and what selects it there."""
    slot = class_slot(name, family)
    assert slot is not None, name
    return slot.stack, slot.of


def stacked_state(state: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """Return the tensors of a dense model by the names of files, which may stack experts."""
    found, stacks = dict[str, torch.Tensor](), dict[str, list[tuple[Slot, torch.Tensor]]]()
    for name, tensor in state.items():
        if (slot := slot_of(name, family)) is None:
            found[name] = tensor
        else:
            stacks.setdefault(slot.stack, []).append((slot, tensor))
    for name, parts in stacks.items():
        last, tensor = max(parts, key=lambda part: part[0].expert)
        shape = stack_shape(last, tuple(tensor.shape), last.expert + 1)
        found[name] = tensor.new_empty(shape)
        for slot, part in parts:
            slot.of(found[name]).copy_(part)
    return found
