"""Experts that read the stream beside an MLP, through norms and a router of their own (Gemma 4)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import RMSNorm

from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.layer import LayerContext
from sgate_serve.engines.vllm.mixture import UnevenMixture, choice
from sgate_serve.engines.vllm.norms import residual_norm


class UnevenBranch(UnevenMixture):
    """A mixture whose shared expert is the layer's MLP; each of the two results has a norm."""

    def __init__(self, model: ModelContext, layer: LayerContext, prefix: str) -> None:
        super().__init__(model, layer, prefix)
        self.before, self.after, self.after_shared = (residual_norm(model) for _ in range(3))

    def make_router(self, model: ModelContext, num_experts: int, prefix: str) -> nn.Module:
        return ScaledChoice(model, num_experts, prefix)

    def forward(self, x: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # reads both
        """Return [tokens, hidden]; `x` is what the MLP reads."""
        routed: torch.Tensor = self.after(self.routed(self.before(stream), self.router(stream)[0]))
        return routed if self.shared is None else routed + self.after_shared(self.shared(x))

    def choices(self) -> Iterator[tuple[str, nn.Module]]:
        router: Any = self.router
        name = self.layer.spec.family.router_name(self.layer.index)
        yield from ((name, router.linear), (name.rpartition(".")[0], router))

    def norms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the norms over the stream besides those of the block, by their names."""
        branch = self.layer.spec.family.branch(self.layer.index)
        assert branch is not None, "only such layers have one"
        yield from zip(branch.norms, (self.before, self.after, self.after_shared), strict=True)


class ScaledChoice(nn.Module):
    """A router that normalizes the stream itself, and multiplies the shares that it gives.

    Its parameters have the names that they have in files.
    """

    def __init__(self, model: ModelContext, num_experts: int, prefix: str) -> None:
        super().__init__()
        spec = model.spec
        self.norm = RMSNorm(
            spec.hidden_size, eps=spec.norm_eps * spec.norm_gain**2, has_weight=False
        )
        self.scale = nn.Parameter(torch.ones(spec.hidden_size), requires_grad=False)
        self.per_expert_scale = nn.Parameter(torch.ones(num_experts), requires_grad=False)
        self.linear = choice(spec.hidden_size, num_experts, prefix)
        # The gain that the norm lacks, over the root of the width before removal.
        self.factor = spec.hidden_size**-0.5

    @property
    def settings(self) -> dict[str, Any]:
        """How vLLM's experts are chosen by these logits."""
        return {"custom_routing_function": self.route}

    def forward(self, stream: torch.Tensor) -> tuple[torch.Tensor, Any]:
        logits: tuple[torch.Tensor, Any] = self.linear(self.norm(stream) * self.factor * self.scale)
        return logits

    def route(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the shares of the chosen experts, in fp32, and their numbers, both [tokens, k]."""
        scores = torch.softmax(gating_output, dim=-1, dtype=torch.float32)
        shares, numbers = torch.topk(scores, topk, dim=-1)
        shares = shares / shares.sum(dim=-1, keepdim=True) * self.per_expert_scale[numbers]
        return shares.to(torch.float32), numbers.to(torch.int32)
