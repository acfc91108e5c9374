"""Rules 5, 9 and 10 of query and key dimensions."""

from typing import Any

import pytest

from converters.rules.query_key import constant_query_dims, dead_key_dims, uniform_heads
from sgate_serve.plan import Merge
from tests.converters.rules.by_hand import (
    EVERY,
    Indices,
    facts_of,
    found_by,
    half_rotated,
    layer_of,
    spec_of,
    view_of,
    with_softcap,
    without,
)

# Width 4: rotary pairs are (0, 2) and (1, 3). Heads 0 and 1 share KV head 0.
ROTARY = spec_of(head_dim=4)
PLAIN = spec_of("gpt2")
PARTIAL = half_rotated(ROTARY)
NORMED = spec_of("qwen3", head_dim=4)


def in_group(*dims: int) -> tuple[int, ...]:
    """Return the rows of dimensions of KV head 0 in both of its query heads."""
    return (*dims, *(4 + dim for dim in dims))


def found(spec: Any, bias: bool = False, **layer: dict[str, Indices]) -> list[int]:
    return found_by(dead_key_dims, facts_of(spec, layer_of(spec, bias=bias, **layer)), "key_dims")


def test_rotated_pair_dies_whole_and_half_a_pair_lives() -> None:
    assert found(ROTARY, query={"rows": in_group(0)}) == []
    assert found(ROTARY, key={"rows": (0,)}) == []
    assert found(ROTARY, query={"rows": in_group(0, 2)}) == [0, 2]
    assert found(ROTARY, key={"rows": (0, 2)}) == [0, 2]


def test_zero_query_with_the_other_half_zero_in_the_key_lives() -> None:
    assert found(ROTARY, query={"rows": in_group(0)}, key={"rows": (2,)}) == []


def test_rotated_pair_lives_by_a_bias_on_either_side() -> None:
    assert found(ROTARY, query={"rows": in_group(0, 2), "bias": in_group(0)}) == []
    # No k-bias trick under rotation.
    assert found(ROTARY, key={"rows": (0, 2), "bias": (0,)}) == []
    assert found(ROTARY, key={"rows": (0, 2), "bias": (0, 2)}) == [0, 2]


def test_query_must_be_zero_in_every_living_head_of_the_group() -> None:
    facts = facts_of(ROTARY, layer_of(ROTARY, query={"rows": (0, 2)}))
    assert found_by(dead_key_dims, facts, "key_dims") == []
    assert found_by(dead_key_dims, without(facts, heads=(1,)), "key_dims") == [0, 2]


def test_key_row_alone_suffices_without_rotation_and_its_bias_goes_too() -> None:
    assert found(PLAIN, key={"rows": (3,), "bias": ()}) == [3]
    assert found(PLAIN, query={"rows": (3,), "bias": ()}) == []
    assert found(PLAIN, query={"rows": (3,), "bias": (3,)}) == [3]


def test_soft_capping_is_not_invariant_to_a_key_bias() -> None:
    assert found(with_softcap(PLAIN), key={"rows": (3,), "bias": ()}) == []
    assert found(with_softcap(PLAIN), key={"rows": (3,), "bias": (3,)}) == [3]


def test_partial_rotation_pairs_what_it_rotates_and_nothing_else() -> None:
    # (0, 1) rotate; 2 and 3 do not.
    assert found(PARTIAL, key={"rows": (0, 2), "bias": ()}) == [2]
    assert found(PARTIAL, key={"rows": (0, 1), "bias": ()}) == []
    assert found(PARTIAL, key={"rows": (0, 1)}) == [0, 1]


def test_under_query_and_key_norms_both_sides_must_be_zero() -> None:
    assert found(NORMED, query={"rows": in_group(0, 2)}) == []
    assert found(NORMED, key={"rows": (0, 2)}) == []
    both = {"query": {"rows": in_group(0, 2)}, "key": {"rows": (0, 2)}}
    assert found(NORMED, **both) == [0, 2]  # type: ignore[arg-type]


def merges_of(rule: Any, at: Any) -> list[Merge]:
    return [merge for death in rule(at) for merge in death.merges]


def test_heads_of_a_group_with_zero_queries_merge_into_the_first() -> None:
    facts = facts_of(ROTARY, layer_of(ROTARY, query={"rows": tuple(range(8))}))
    assert found_by(uniform_heads, facts, "heads") == [1]
    assert merges_of(uniform_heads, view_of(facts)) == [Merge("heads", 0, (0, 1))]


def test_heads_of_different_groups_do_not_merge() -> None:
    facts = facts_of(ROTARY, layer_of(ROTARY, query={"rows": (*range(4), *range(8, 12))}))
    assert found_by(uniform_heads, facts, "heads") == []


@pytest.mark.parametrize("query", [{"rows": EVERY, "bias": ()}, {"rows": (0, 1, 2, 4, 5, 6)}])
def test_heads_whose_scores_can_differ_do_not_merge(query: dict[str, Indices]) -> None:
    facts = facts_of(ROTARY, layer_of(ROTARY, query=query))
    assert found_by(uniform_heads, facts, "heads") == []


def test_heads_are_uniform_where_what_is_left_of_their_query_is_dead() -> None:
    facts = facts_of(ROTARY, layer_of(ROTARY, query={"rows": in_group(0, 2)}))
    assert found_by(uniform_heads, without(facts, key_dims=(1, 3)), "heads") == [1]


def test_heads_do_not_merge_under_a_norm_that_spans_them() -> None:
    spec = spec_of("olmo2")
    facts = facts_of(spec, layer_of(spec, query={"rows": EVERY}))
    assert found_by(uniform_heads, facts, "heads") == []


def test_heads_merge_only_with_exact_sums() -> None:
    layer = layer_of(ROTARY, query={"rows": EVERY})
    facts = facts_of(ROTARY, layer, has_exact_sums=False)
    assert found_by(uniform_heads, facts, "heads") == []


def test_constant_queries_of_a_head_merge() -> None:
    facts = facts_of(PLAIN, layer_of(PLAIN, bias=True, query={"rows": EVERY}))
    assert found_by(constant_query_dims, facts, "key_dims") == [1, 3, 5, 7]
    merges = merges_of(constant_query_dims, view_of(facts))
    assert merges[0] == Merge("key_dims", 0, (0, 1))
    assert len(merges) == 4


@pytest.mark.parametrize(
    ("spec", "exact"), [(ROTARY, True), (NORMED, True), (PLAIN, False), (PARTIAL, True)]
)
def test_constant_queries_stay_where_the_sum_is_another_or_rounds(spec: Any, exact: bool) -> None:
    layer = layer_of(spec, bias=True, query={"rows": EVERY})
    facts = facts_of(spec, layer, has_exact_sums=exact)
    assert found_by(constant_query_dims, facts, "key_dims") == []


def test_unrotated_constant_queries_merge_where_each_group_has_one_head() -> None:
    single = half_rotated(spec_of(head_dim=4, num_key_value_heads=4))
    facts = facts_of(single, layer_of(single, bias=True, query={"rows": EVERY}))
    assert found_by(constant_query_dims, facts, "key_dims") == [3, 7, 11, 15]


@pytest.mark.parametrize("rule", [dead_key_dims, uniform_heads, constant_query_dims])
def test_no_heads_no_findings(rule: Any) -> None:
    facts = facts_of(PLAIN, layer_of(PLAIN, query={"rows": EVERY}))
    at = without(facts, heads=EVERY)
    assert found_by(rule, at, "key_dims") == found_by(rule, at, "heads") == []
