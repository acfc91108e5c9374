"""Norms over the values of a head, and keys that are values too: what stays, and what goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from sgate_serve.architecture.family import KEY, OUTPUT, QUERY, VALUE
from tests.converters.exactness import Example, check
from tests.converters.zeroing import Weights
from tests.families.zoo import ZOO, Variant, build, token_batch

SHARED, BIASED = ZOO["gemma4_text"][:2]
# The first layer of the one slides; that of the other has wide heads, and values of its own.
SLIDING, WIDE = 16, 24


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_batch(SHARED, 0)).logits
    return found


def test_a_value_that_nothing_reads_counts_in_the_norm_of_the_others() -> None:
    model = build(SHARED, 0)
    attention: Any = model.model.layers[0].self_attn
    # Both heads of the first group ignore its first dimension.
    attention.o_proj.weight.data[:, [0, SLIDING]] = 0
    before = outputs(model)
    attention.v_proj.weight.data[0] = 0
    assert (outputs(model) - before).abs().max() > 1e-2


def test_a_constant_value_is_another_one_for_each_token() -> None:
    """Its bias, summed over the heads and moved behind the attention, is not what it adds."""
    model = build(BIASED, 0)
    attention: Any = model.model.layers[0].self_attn
    attention.v_proj.weight.data[0] = 0
    attention.v_proj.bias.data[0] = 1.0
    before = outputs(model)
    readers = attention.o_proj.weight.data[:, [0, WIDE]].sum(dim=1)
    attention.o_proj.bias.data += readers * attention.v_proj.bias.data[0]
    attention.v_proj.bias.data[0] = 0
    assert (outputs(model) - before).abs().max() > 1e-2


def test_unread_values_stay_and_their_output_columns_go(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, [0, SLIDING]] = 0

    layer = check(Example(SHARED, change=change), tmp_path).layers[0]
    assert layer.value_dims == tuple(range(2 * SLIDING))
    assert [(cut.roles, cut.side) for cut in layer.lowerings] == [((OUTPUT,), "columns")]


def test_a_group_that_writes_nothing_goes_with_its_values(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        weights.matrix(0, OUTPUT)[:, : 2 * SLIDING] = 0

    layer = check(Example(SHARED, change=change), tmp_path).layers[0]
    assert (layer.heads, layer.kv_heads) == ((2, 3), (1,))


@pytest.mark.parametrize("has_bias", [False, True])
def test_zero_values_lose_their_output_columns_unless_a_bias_lives(
    has_bias: bool, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        bias = weights.bias(0, VALUE)
        assert bias is not None
        weights.matrix(0, VALUE)[:3] = 0
        bias[:3] = float(has_bias)

    plan = check(Example(BIASED, change=change), tmp_path)
    cuts = {(*cut.roles, cut.side): cut.kept for cut in plan.layers[0].lowerings}
    assert cuts[VALUE, "rows"] == tuple(range(3, 2 * WIDE))
    assert ((OUTPUT, "columns") in cuts) is not has_bias
    assert not plan.folds


@pytest.mark.parametrize("role", [QUERY, KEY])
def test_where_keys_are_values_zero_keys_are_zero_values_and_zero_queries_are_nothing(
    role: str, tmp_path: Path
) -> None:
    """Of a layer whose four query heads share one KV head."""

    def change(weights: Weights) -> None:
        matrix = weights.matrix(1, role)
        matrix[[head * WIDE + dim for head in range(len(matrix) // WIDE) for dim in (1, 13)]] = 0

    layer = check(Example(SHARED, change=change), tmp_path).layers[1]
    gone = {1, 13} if role == KEY else set()
    assert set(range(WIDE)) - set(layer.value_dims) == gone
    assert layer.key_dims == tuple(range(WIDE))
    cuts = {(*cut.roles, cut.side) for cut in layer.lowerings}
    assert cuts == ({(KEY, "rows"), (OUTPUT, "columns")} if role == KEY else {(QUERY, "rows")})


def test_where_keys_are_values_a_removed_key_row_would_change_them() -> None:
    """Zero queries make a dimension of the keys idle in scores, and it is read as a value."""
    model = build(SHARED, 0)
    attention: Any = model.model.layers[1].self_attn
    attention.q_proj.weight.data[[head * WIDE + dim for head in range(4) for dim in (1, 13)]] = 0
    before = outputs(model)
    attention.k_proj.weight.data[[1, 13]] = 0
    assert (outputs(model) - before).abs().max() > 1e-2


def test_a_layer_without_blocks_still_multiplies_the_stream(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for role in (OUTPUT, "down"):
            weights.matrix(1, role)[:] = 0

    plan = check(Example(SHARED, change=change), tmp_path)
    assert plan.layers[1].skipped_blocks == ("attention", "mlp")


def test_the_zoo_covers_both_kinds_of_layers() -> None:
    model = Gemma4ForCausalLM(Gemma4TextConfig(**SHARED.config))
    values = [layer.self_attn.v_proj is not None for layer in model.model.layers]
    assert values == [True, False, False]
    assert isinstance(BIASED, Variant) and not BIASED.config["attention_k_eq_v"]
