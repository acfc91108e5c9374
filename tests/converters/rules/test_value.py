"""Rules 2, 3 and 4 of value dimensions and heads."""

from typing import Any

import pytest

from converters.rules.findings import LayerRule
from converters.rules.value import (
    constant_value_dims,
    dead_heads,
    dead_kv_heads,
    dead_value_dims,
)
from tests.converters.rules.by_hand import EVERY, facts_of, found_by, layer_of, spec_of, without

# Four query heads of width 2; heads 0 and 1 share KV head 0, whose value dimensions are 0 and 1.
SPEC = spec_of()


def test_value_dimension_dies_when_silent_unless_its_bias_lives() -> None:
    facts = facts_of(SPEC, layer_of(SPEC, value={"rows": (1,)}))
    assert found_by(dead_value_dims, facts, "value_dims") == [1]
    with_bias = facts_of(SPEC, layer_of(SPEC, value={"rows": (1, 2), "bias": (2,)}))
    assert found_by(dead_value_dims, with_bias, "value_dims") == [2]


def test_value_dimension_is_unread_only_when_every_living_head_of_its_group_ignores_it() -> None:
    # Columns 0 and 2 are dimension 0 of heads 0 and 1.
    one_head = facts_of(SPEC, layer_of(SPEC, output={"columns": (0,)}))
    assert found_by(dead_value_dims, one_head, "value_dims") == []
    assert found_by(dead_value_dims, without(one_head, heads=(1,)), "value_dims") == [0]
    both = facts_of(SPEC, layer_of(SPEC, output={"columns": (0, 2)}))
    assert found_by(dead_value_dims, both, "value_dims") == [0]


def test_value_dimension_without_a_row_is_its_bias() -> None:
    facts = facts_of(SPEC, layer_of(SPEC, bias=True, value={"rows": (3,)}))
    assert found_by(constant_value_dims, facts, "value_dims", constants=True) == [3]


def test_a_value_bias_with_a_row_stays_where_it_is() -> None:
    facts = facts_of(SPEC, layer_of(SPEC, bias=True))
    assert found_by(constant_value_dims, facts, "value_dims") == []


def test_head_dies_when_its_output_columns_are_zero() -> None:
    facts = facts_of(SPEC, layer_of(SPEC, output={"columns": (2, 3, 4)}))
    assert found_by(dead_heads, facts, "heads") == [1]


def test_head_dies_when_its_values_are_dead_or_unread() -> None:
    facts = facts_of(SPEC)
    assert found_by(dead_heads, without(facts, value_dims=(0, 1)), "heads") == [0, 1]
    # Head 2 reads only dimension 0 of its group, which is dead; head 3 reads the other as well.
    mixed = facts_of(SPEC, layer_of(SPEC, output={"columns": (5,)}))
    assert found_by(dead_heads, without(mixed, value_dims=(2,)), "heads") == [2]


@pytest.mark.parametrize("role", ["query", "key"])
def test_head_with_zero_query_or_key_lives_because_it_averages_values(role: str) -> None:
    change: dict[str, Any] = {role: {"rows": EVERY}}
    facts = facts_of(SPEC, layer_of(SPEC, **change))
    assert found_by(dead_heads, facts, "heads") == []


def test_heads_under_one_norm_die_all_together_or_not_at_all() -> None:
    spec = spec_of("olmo2")
    one = facts_of(spec, layer_of(spec, output={"columns": (2, 3)}))
    assert found_by(dead_heads, one, "heads") == []
    # The values of heads 0 and 1 are dead, and nothing reads those of heads 2 and 3.
    all_four = facts_of(spec, layer_of(spec, output={"columns": (4, 5, 6, 7)}))
    assert found_by(dead_heads, without(all_four, value_dims=(0, 1)), "heads") == [0, 1, 2, 3]


NORMED: dict[str, Any] = {"hidden_size_per_layer_input": 0, "global_head_dim": 2}


def test_under_a_norm_over_values_all_of_a_head_is_unread_or_none() -> None:
    spec = spec_of("gemma4_text", **NORMED)
    facts = facts_of(spec, layer_of(spec, output={"columns": (0, 2)}))
    assert found_by(dead_value_dims, facts, "value_dims") == []
    facts = facts_of(spec, layer_of(spec, output={"columns": (0, 1, 2, 3)}))
    assert found_by(dead_value_dims, facts, "value_dims") == [0, 1]


def test_under_a_norm_over_values_no_constant_moves() -> None:
    spec = spec_of("gemma4_text", **NORMED, attention_bias=True)
    facts = facts_of(spec, layer_of(spec, bias=True, value={"rows": EVERY}))
    assert found_by(constant_value_dims, facts, "value_dims") == []


def test_where_keys_are_values_their_zero_rows_are_dead_values() -> None:
    spec = spec_of("gemma4_text", **NORMED, attention_k_eq_v=True)
    assert "value" not in spec.linear_shapes(0)
    facts = facts_of(spec, layer_of(spec, bias=True, key={"rows": (0, 3), "bias": (3,)}))
    assert found_by(dead_value_dims, facts, "value_dims") == [3]


def test_kv_head_dies_with_its_last_query_head() -> None:
    facts = facts_of(SPEC)
    assert found_by(dead_kv_heads, without(facts, heads=(0,)), "kv_heads") == []
    assert found_by(dead_kv_heads, without(facts, heads=(0, 1)), "kv_heads") == [0]


@pytest.mark.parametrize("rule", [dead_value_dims, constant_value_dims, dead_heads])
def test_no_heads_no_findings(rule: LayerRule) -> None:
    facts = facts_of(SPEC, layer_of(SPEC, value={"rows": EVERY}))
    at = without(facts, heads=EVERY)
    assert found_by(rule, at, "value_dims") == found_by(rule, at, "heads") == []
