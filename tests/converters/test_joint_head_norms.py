"""Norms that span the queries, or the keys, of all heads: why heads stay, and when they go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from converters.explain import plan_table
from sgate_serve.architecture.family import KEY, OUTPUT, QUERY
from sgate_serve.checkpoint.reader import Checkpoint
from tests.converters.exactness import Example, check, write_base
from tests.converters.zeroing import Weights
from tests.families.zoo import ZOO, token_batch
from tests.families.zoo_configs import DECODER

OLMO2 = ZOO["olmo2"]
WIDTH = 12


def olmo2(heads: int) -> Any:
    """Return a stock model of so many heads of width 12, none of them grouped."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": WIDTH}
    torch.manual_seed(0)
    return Olmo2ForCausalLM(Olmo2Config(**DECODER | sizes | {"num_hidden_layers": 1})).eval()


@pytest.mark.parametrize("are_queries_zero", [False, True])
@torch.no_grad()
def test_without_a_head_that_writes_nothing_the_others_change(are_queries_zero: bool) -> None:
    """Its queries count in the norm; where they are zero, so does their number."""
    whole, cut, kept = olmo2(4), olmo2(3), 3 * WIDTH
    attention = whole.model.layers[0].self_attn
    attention.o_proj.weight[:, kept:] = 0
    for linear in (attention.q_proj, attention.k_proj) if are_queries_zero else ():
        linear.weight[kept:] = 0
    shapes = {name: value.shape for name, value in cut.state_dict().items()}
    for name, value in whole.state_dict().items():
        cut.state_dict()[name].copy_(value[tuple(slice(size) for size in shapes[name])])
    ids = token_batch(OLMO2[0], 0)
    assert (whole(ids).logits - cut(ids).logits).abs().max() > 1e-2


def test_a_group_that_writes_nothing_loses_its_values_and_no_head(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, 2 * WIDTH :] = 0

    example = Example(OLMO2[0], change=change)
    plan = check(example, tmp_path / "checked")
    layer = plan.layers[0]
    assert layer.heads == (0, 1, 2, 3) and layer.kv_heads == (0, 1)
    write_base(example, tmp_path / "base")
    explained = plan_table(plan, Checkpoint.open(tmp_path / "base").spec, explain=True)
    assert any(
        "heads stay as long as their block does: one norm spans" in line for line in explained
    )
    cuts = {(*cut.roles, cut.side): cut.kept for cut in layer.lowerings}
    assert cuts["value", "rows"] == tuple(range(WIDTH))
    assert cuts["output", "columns"] == tuple(range(2 * WIDTH))


def test_a_head_stays_whose_queries_and_keys_are_zero_too(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, 48:] = 0
        for role in (QUERY, KEY):
            bias = weights.bias(0, role)
            assert bias is not None
            weights.matrix(0, role)[48:] = bias[48:] = 0

    layer = check(Example(OLMO2[1], change=change), tmp_path).layers[0]
    assert layer.heads == (0, 1, 2, 3)
    cuts = {(*cut.roles, cut.side): cut.kept for cut in layer.lowerings}
    assert cuts["query", "rows"] == cuts["key", "rows"] == tuple(range(48))


def test_a_block_that_writes_a_constant_keeps_one_group(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:] = 0

    plan = check(Example(OLMO2[1], change=change), tmp_path)
    assert [layer.heads for layer in plan.layers] == [(0,), (0, 1, 2, 3), (0, 1, 2, 3)]
