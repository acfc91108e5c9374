"""A mixture of experts: vLLM's fused experts, each layer with its own number of them.

vLLM multiplies all experts of a layer at once, so they have one width: that of the widest, rounded
up. The added units are zeros, as are all of an expert without units, and add nothing. Experts are
split over shards by their units or, with --enable-expert-parallel, one by one. Those of int8
folders are held in floats: vLLM has no kernel for int8 experts on every machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import vllm
from torch import nn
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.utils import set_weight_attrs

from sgate_serve.architecture.family import DOWN, EXPERTS, GATE, MLP_ROLES, UP
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.layer import BIAS, SCALE, WEIGHT, LayerContext, Tensors
from sgate_serve.engines.vllm.mlp import UnevenMLP
from sgate_serve.engines.vllm.sharding import round_up
from sgate_serve.errors import EngineError

# vLLM's kernels for CPU take multiples of this alone; GPUs read aligned rows faster.
ALIGNMENT = 32
# vLLM's name for clamped units.
CLAMPED_UNITS = "swigluoai"
# Its names for an expert's linears, and the parameters that hold them.
LINEARS = {GATE: ("w1", "w13_weight"), UP: ("w3", "w13_weight"), DOWN: ("w2", "w2_weight")}


class UnevenMixture(nn.Module):
    """The experts of one layer, their router, and the expert that every token uses, if any."""

    def __init__(self, model: ModelContext, layer: LayerContext, prefix: str) -> None:
        super().__init__()
        self.layer, self.hidden_size = layer, model.spec.hidden_size
        shape = model.spec.layers[layer.index]
        self.width = round_up(self.hidden_size, ALIGNMENT)
        self.units = round_up(max(1, *shape.experts), ALIGNMENT * _num_shards(layer))
        mixture = layer.mixture
        self.router = self.make_router(model, len(shape.experts), f"{prefix}.gate")
        self.is_clamped = model.spec.clamped_units is not None
        self.experts = _fused_experts(
            **({"has_bias": True} if self.is_clamped else {}),
            **getattr(self.router, "settings", {}),
            num_experts=getattr(self.router, "num_experts", len(shape.experts)),
            top_k=shape.top_k,
            hidden_size=self.width,
            intermediate_size=self.units,
            renormalize=model.spec.norm_topk_prob,
            activation=CLAMPED_UNITS if self.is_clamped else model.spec.activation,
            prefix=f"{prefix}.experts",
        )
        # Weights and biases, not the correction of the router, which the experts hold as well.
        for name, parameter in self.experts.routed_experts.named_parameters(recurse=False):
            if name.startswith(("w13_", "w2_")):
                parameter.data.zero_()
        self.shared: UnevenMLP | None = None
        self.shared_gate: nn.Module | None = None
        if shape.shared_units:
            self.shared = UnevenMLP(model, _of_shared(layer), f"{prefix}.shared_expert")
            if mixture.shared_gate is not None:
                self.shared_gate = choice(self.hidden_size, 1, f"{prefix}.shared_expert_gate")

    def make_router(self, model: ModelContext, num_experts: int, prefix: str) -> nn.Module:
        """Build what gives the logits of experts; it may know how vLLM is to choose by them."""
        if model.spec.correction(self.layer.index) is not None:
            return CorrectedChoice(self.hidden_size, num_experts, model.spec.routed_scaling)
        has_bias = self.layer.mixture.has_biased_router
        return choice(self.hidden_size, num_experts, prefix, bias=has_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, hidden], to be added to the residual stream."""
        scores = self.router(x)[0]
        # Before the others: vLLM may write their sum into x.
        shared = None
        if self.shared is not None:
            shared = self.shared(x)
            if self.shared_gate is not None:
                shared = torch.sigmoid(self.shared_gate(x)[0]) * shared
        y = self.routed(x, scores)
        return y if shared is None else y + shared

    def routed(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return what the chosen experts make of `x`; vLLM may overwrite that."""
        if self.width != self.hidden_size:
            x = nn.functional.pad(x, (0, self.width - self.hidden_size))
        y: torch.Tensor = self.experts(hidden_states=x, router_logits=scores)
        return y[..., : self.hidden_size]

    def choices(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the router and the shared expert's gate by their names in the folder."""
        for name, axes in self.layer.spec.router_tensors(self.layer.index).items():
            module = self.router if EXPERTS in axes else self.shared_gate
            if module is not None and name.endswith(f".{WEIGHT}"):
                yield name.removesuffix(f".{WEIGHT}"), module

    def loaders(self) -> Iterator[tuple[str, Callable[[str, Tensors], None]]]:
        """Yield every linear of the experts that vLLM fuses, and the function that loads it."""
        spec, index = self.layer.spec, self.layer.index
        for role in MLP_ROLES:
            for part in spec.parts(index, role):
                if part.expert is not None and part.expert < len(spec.layers[index].experts):
                    yield part.module, self.load

    def load(self, module: str, tensors: Tensors) -> None:
        """Load the stored matrix of one expert, padded with zeros to the common width."""
        spec = self.layer.spec
        (role,) = spec.modules(self.layer.index)[module]
        name, parameter = LINEARS[role]
        rows, columns = (self.width, self.units) if role == DOWN else (self.units, self.width)
        weight = tensors[WEIGHT]
        if SCALE in tensors:
            weight = weight.to(torch.float32) * tensors[SCALE].to(torch.float32)
        padding = (0, columns - weight.shape[1], 0, rows - weight.shape[0])
        padded, held = nn.functional.pad(weight, padding), self.experts.routed_experts
        if self.is_clamped:
            self._load_clamped(role, spec.expert_of(module), padded, tensors[BIAS])
            return
        place = getattr(held, parameter)
        held.weight_loader(place, padded, parameter, name, spec.expert_of(module))

    def _load_clamped(
        self, role: str, expert: int | None, padded: torch.Tensor, bias: torch.Tensor
    ) -> None:
        """Load this shard's part of an expert with clamped units: gate and up alternate by rows.

        What all shards add up has the bias of the output once.
        """
        held = self.experts.routed_experts
        local = held._map_global_expert_id_to_local_expert_id(expert)
        if local == -1:
            return
        parallel = held.moe_config.moe_parallel_config
        units, rank = self.units // parallel.tp_size, parallel.tp_rank
        own = slice(rank * units, (rank + 1) * units)
        if role == DOWN:
            held.w2_weight.data[local, : self.width, :units] = padded[:, own]
            held.w2_bias.data[local, : len(bias)] = bias if rank == 0 else 0
            return
        rows = slice(int(role == UP), 2 * units, 2)
        held.w13_weight.data[local, rows, : self.width] = padded[own]
        padded_bias = nn.functional.pad(bias, (0, self.units - len(bias)))
        held.w13_bias.data[local, rows] = padded_bias[own]


class CorrectedChoice(nn.Module):
    """A router of sigmoid scores, which a correction changes for the choice alone, in fp32.

    vLLM's router adds up the two best scores of each group, here of all experts: next to a lone one
    there is a second that it never chooses, of zeros.
    """

    def __init__(self, hidden_size: int, num_experts: int, factor: float) -> None:
        super().__init__()
        self.num_experts, self.factor = max(2, num_experts), factor
        weight = torch.empty(num_experts, hidden_size, dtype=torch.float32)
        self.weight = nn.Parameter(weight, requires_grad=False)
        correction = torch.full((self.num_experts,), -torch.inf, dtype=torch.float32)
        self.e_score_correction_bias = nn.Parameter(correction, requires_grad=False)
        set_weight_attrs(self.e_score_correction_bias, {"weight_loader": _load_first})

    @property
    def settings(self) -> dict[str, Any]:
        """How vLLM's experts are chosen by these logits."""
        return {
            "scoring_func": "sigmoid",
            "e_score_correction_bias": self.e_score_correction_bias,
            "use_grouped_topk": True,
            "num_expert_group": 1,
            "topk_group": 1,
            "router_logits_dtype": torch.float32,
            "routed_scaling_factor": self.factor,
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        logits = nn.functional.linear(x.to(torch.float32), self.weight)
        return (nn.functional.pad(logits, (0, self.num_experts - len(self.weight))),)


def _load_first(parameter: nn.Parameter, stored: torch.Tensor) -> None:
    """Load the values of stored experts; those after them stay as they are."""
    parameter.data[: len(stored)].copy_(stored)


def _num_shards(layer: LayerContext) -> int:
    """Return among how many processes vLLM divides experts: those of other requests, too."""
    parallel = layer.vllm_config.parallel_config
    others: int = parallel.data_parallel_size * parallel.prefill_context_parallel_size
    return layer.num_shards * others


def _fused_experts(**settings: Any) -> Any:
    """Build vLLM's experts, whose module has had this name since 0.27."""
    try:
        from vllm.model_executor.layers.fused_moe import FusedMoEFactory
    except ImportError as error:
        raise EngineError(
            f"mixtures of experts need vLLM 0.27 or newer, found {vllm.__version__}; upgrade it"
        ) from error
    return FusedMoEFactory(**settings)


def choice(hidden_size: int, outputs: int, prefix: str, *, bias: bool = False) -> ReplicatedLinear:
    """Return the linear of a router or a gate, which are never quantized."""
    return ReplicatedLinear(hidden_size, outputs, bias=bias, prefix=prefix)


def _of_shared(layer: LayerContext) -> LayerContext:
    """Return the layer as its shared expert sees it: with an MLP that has its name and width."""
    spec, mixture = layer.spec, layer.spec.family.mixture
    assert mixture is not None, "only such a family has experts"
    own = {role: f"{mixture.shared}.{name}" for role, name in mixture.linears.items()}
    family = replace(spec.family, linears={**spec.family.linears, **own})
    dense = spec.layers[layer.index]
    shape = replace(dense, mlp_units=dense.shared_units, experts=(), top_k=0)
    narrow = replace(spec, family=family, layers=(shape,) * len(spec.layers))
    return replace(layer, spec=narrow)
