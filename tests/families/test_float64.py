"""The float64 oracle: no computation of any family rounds to float32."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from tests.families.float64 import as_float64, logits64, outputs64
from tests.families.zoo import VARIANTS, ZOO, Variant, build, token_batch

# transformers casts to float32 in all of these and in none of the others.
CASTING = [v for v in VARIANTS if v.family not in ("gpt2", "bert", "roberta", "distilbert")]


def largest(difference: NDArray[Any]) -> float:
    return float(np.abs(difference).max())


def slope(model: PreTrainedModel, ids: torch.Tensor, step: float) -> NDArray[np.float64]:
    """Return (f(w + step·w·noise) − f(w)) / step, with all weights moved at once."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in moved.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.data.mul_(1 + step * noise)
    with torch.no_grad():
        after, before = moved(ids)[0], model(ids)[0]
    return np.asarray((after - before).double() / step)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_float64_and_float32_differ_by_float32_rounding(variant: Variant) -> None:
    model, ids = build(variant, seed=0), token_batch(variant, seed=0)
    # Eager as well, because the other kernel ignores Gemma 2's soft-cap.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        single = model(ids)[0].numpy()
    double = logits64(model, ids)
    assert 1e-8 < largest(double - single) / largest(double) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_output_is_linear_in_the_weights_down_to_1e_10(variant: Variant) -> None:
    model, ids = as_float64(build(variant, seed=0)), token_batch(variant, seed=0)
    expected = slope(model, ids, 1e-8)
    assert largest(expected) > 1
    for step in (1e-6, 1e-10):
        assert largest(slope(model, ids, step) - expected) < 1e-4 * largest(expected)


@pytest.mark.parametrize("variant", CASTING, ids=str)
def test_a_model_only_cast_to_double_is_not_linear(variant: Variant) -> None:
    model, ids = build(variant, seed=0).double(), token_batch(variant, seed=0)
    model.set_attn_implementation("eager")
    expected = slope(model, ids, 1e-6)
    assert largest(slope(model, ids, 1e-10) - expected) > 0.1 * largest(expected)


def is_idle(name: str, variant: Variant) -> bool:
    """Say whether a matrix is a router's whose lone choice has the share 1, whatever it holds."""
    return name.endswith(".gate.weight") and variant.config.get("num_experts_per_tok") == 1


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_change_of_1e_11_in_any_matrix_of_layer_0_shows(variant: Variant) -> None:
    model, ids = build(variant, seed=0), token_batch(variant, seed=0)
    before = logits64(model, ids)
    named = {name: p for name, p in model.named_parameters() if not is_idle(name, variant)}
    matrices = [p for name, p in named.items() if ".0." in name and p.ndim == 2]
    assert len(matrices) >= 4
    for matrix in matrices:
        weight = matrix.data.view(-1)[matrix.abs().argmax()]
        kept = weight.clone()
        weight.mul_(1 + 1e-11)
        assert 0 < largest(logits64(model, ids) - before) < 1e-9
        weight.copy_(kept)


@pytest.mark.parametrize("variant", CASTING, ids=str)
def test_rotary_tables_are_more_precise_than_float32(variant: Variant) -> None:
    model, ids = as_float64(build(variant, seed=0)), token_batch(variant, seed=0)
    tables: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.base_model.rotary_emb.register_forward_hook(lambda _, __, table: tables.append(table))
    logits64(model, ids)
    assert tables
    for cos, sin in tables:
        assert (cos != cos.to(torch.float32).double()).any()
        norms = cos.square() + sin.square()
        assert (norms - norms.mean()).abs().max() < 1e-14


class OwnNorm(nn.Module):
    """A norm of a different class, with its own divisor and its own cast to float32."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self.eps = stock.weight, stock.variance_epsilon
        self.divisor = len(stock.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        variance = wide.pow(2).sum(-1, keepdim=True) / self.divisor
        normed: torch.Tensor = self.weight * (wide * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return normed


class OwnLinear(nn.Module):
    """A linear of a different class, stored as (in, out)."""

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(stock.weight.detach().T.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype=torch.float32) @ self.weight


class OwnLlama(LlamaForCausalLM):  # type: ignore[misc]
    """A stock model whose linears and norms are replaced after it is built."""

    def replace(self) -> "OwnLlama":
        for layer in self.model.layers:
            layer.mlp.down_proj = OwnLinear(layer.mlp.down_proj)
            layer.input_layernorm = OwnNorm(layer.input_layernorm)
        return self


def test_replaced_linears_and_norms_run_their_own_forward_in_float64() -> None:
    variant = ZOO["llama"][0]
    stock, ids = build(variant, seed=0), token_batch(variant, seed=0)
    own = OwnLlama(stock.config).eval()
    own.load_state_dict(stock.state_dict())
    own.replace()
    assert largest(logits64(own, ids) - logits64(stock, ids)) < 1e-12
    expected = slope(own, ids, 1e-8)
    assert largest(slope(own, ids, 1e-10) - expected) < 1e-4 * largest(expected)
    own.model.layers[0].input_layernorm.divisor += 1
    assert largest(logits64(own, ids) - logits64(stock, ids)) > 1e-3


def test_a_copy_computes_with_its_own_weights() -> None:
    variant = ZOO["llama"][0]
    model, ids = as_float64(build(variant, seed=0)), token_batch(variant, seed=0)
    before = logits64(model, ids)
    copied = copy.deepcopy(model)
    copied.lm_head.weight.data.zero_()
    assert largest(logits64(copied, ids)) == 0
    np.testing.assert_array_equal(logits64(model, ids), before)


def test_the_base_model_alone_computes_in_float64() -> None:
    variant = ZOO["gemma3_text"][0]
    model, ids = as_float64(build(variant, seed=0)), token_batch(variant, seed=0)
    expected = slope(model.model, ids, 1e-8)
    assert largest(slope(model.model, ids, 1e-10) - expected) < 1e-4 * largest(expected)


def test_casts_outside_a_model_are_left_alone_even_after_an_error() -> None:
    variant = ZOO["llama"][0]
    with pytest.raises(IndexError):
        logits64(build(variant, seed=0), token_batch(variant, seed=0) + 97)
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


def test_gpt2s_upcast_attention_is_the_same_in_float64() -> None:
    variant = ZOO["gpt2"][0]
    ids = token_batch(variant, seed=0)
    plain, upcast = (build(variant, 0, reorder_and_upcast_attn=upcast) for upcast in (False, True))
    np.testing.assert_array_equal(logits64(upcast, ids), logits64(plain, ids))


def test_pooled_outputs_come_with_the_hidden_states() -> None:
    variant = ZOO["bert"][0]
    outputs = outputs64(build(variant, seed=0), token_batch(variant, seed=0))
    assert {name: array.shape for name, array in outputs.items()} == {
        "last_hidden_state": (2, 12, 48),
        "pooler_output": (2, 48),
    }
