"""The experts of mixtures: narrowed ones, and where the stock classes of transformers keep theirs.

The files of most families hold one matrix for each linear of each expert; the stock classes stack
those of all experts of a layer, which have the same width there: in most, [experts, 2 · units,
hidden] with the rows of the gate first, and [experts, hidden, units].
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights

from sgate_serve.architecture.family import DOWN, GATE, UP, Family
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.stacks import Slot, class_slot, slot_of, stack_shape


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


def without_router_loss(config: Any) -> dict[str, bool]:
    """Return the argument that keeps a model from computing its routers' own loss.

    Some configs ask for it; the stock one cannot count experts whose number differs by layer.
    """
    name = "output_router_logits"
    return {name: False} if hasattr(config, name) else {}


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
        block = model.get_submodule(spec.family.experts_name(index).rpartition(".")[0])
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
