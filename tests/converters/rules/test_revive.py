"""Dead units that stay for a width's sake."""

from dataclasses import replace
from typing import Any

import pytest

from converters.rules import compile_plan
from converters.rules.facts import ModelFacts
from converters.rules.layer_state import LayerAxis, LayerState
from converters.rules.revive import align_mlp, even_out_groups, keep_constant_blocks, revive
from sgate_serve.errors import PlanError
from sgate_serve.plan import Revival, Target
from tests.converters.rules.by_hand import (
    EVERY,
    Indices,
    facts_of,
    layer_of,
    norm,
    spec_of,
    without,
)

SPEC = spec_of(intermediate_size=10, attention_bias=True, mlp_bias=True)


def state(facts: ModelFacts, **dead: Indices) -> LayerState:
    return without(facts, **dead).layer


def alive(layer: LayerState, axis: LayerAxis) -> list[int]:
    return [int(i) for i in layer.alive(axis).nonzero()[0]]


@pytest.mark.parametrize(
    ("align", "shards", "expected"),
    [
        (1, 1, [8, 9]),
        (2, 1, [8, 9]),
        (4, 1, [0, 1, 8, 9]),
        (2, 2, [0, 1, 8, 9]),
        (64, 1, list(range(10))),
        (8, 5, list(range(10))),
    ],
)
def test_alignment_revives_the_first_dead_units_up_to_the_dense_width(
    align: int, shards: int, expected: list[int]
) -> None:
    layer = state(facts_of(SPEC), mlp_units=tuple(range(8)))
    revived, revivals = align_mlp(layer, Target(align, shards))
    assert alive(revived, "mlp_units") == expected
    assert sum(len(one.indices) for one in revivals) == len(expected) - 2


def test_alignment_leaves_a_removed_block_removed() -> None:
    revived, revivals = align_mlp(state(facts_of(SPEC), mlp_units=EVERY), Target(8, 2))
    assert alive(revived, "mlp_units") == []
    assert revivals == []


def test_width_that_no_shards_can_share_is_refused() -> None:
    layer = state(facts_of(SPEC), mlp_units=(0,))
    match = r"--tensor-parallel 4: layer 0 keeps 9 of 10 MLP units, and no multiple of 4 up to 10"
    with pytest.raises(PlanError, match=match):
        align_mlp(layer, Target(tensor_parallel=4))


def test_every_kv_head_keeps_as_many_query_heads_as_the_largest_group() -> None:
    # Head 0 dies in group 0; group 1 keeps two heads, so one dead head of group 0 stays.
    revived, revivals = even_out_groups(state(facts_of(SPEC), heads=(0,)), Target())
    assert alive(revived, "heads") == [0, 1, 2, 3]
    assert revivals == [Revival("heads", (0,), "each KV head keeps 2 query heads")]
    revived, revivals = even_out_groups(state(facts_of(SPEC), heads=(0, 3)), Target())
    assert (alive(revived, "heads"), revivals) == ([1, 2], [])


WIDE = spec_of(num_attention_heads=8, num_key_value_heads=4)


@pytest.mark.parametrize(
    ("shards", "dead_kv", "dead_heads", "kv_heads", "heads"),
    [
        # Three KV heads of two queries cannot be halved; four of two can.
        (2, (0,), (0, 1), [0, 1, 2, 3], 8),
        # One KV head is replicated over its two query heads' shards.
        (2, (0, 1, 2), (0, 1, 2, 3, 4, 5), [3], 2),
        # Two KV heads with one query each, over four shards: two queries each are the least.
        (4, (0, 1), (0, 1, 2, 3, 4, 6), [2, 3], 4),
        (1, (0,), (0, 1), [1, 2, 3], 6),
    ],
)
def test_shards_get_as_many_query_heads_and_whole_or_replicated_kv_heads(
    shards: int, dead_kv: Indices, dead_heads: Indices, kv_heads: list[int], heads: int
) -> None:
    layer = state(facts_of(WIDE, layer_of(WIDE)), kv_heads=dead_kv, heads=dead_heads)
    revived, revivals = even_out_groups(layer, Target(tensor_parallel=shards))
    assert alive(revived, "kv_heads") == kv_heads
    assert len(alive(revived, "heads")) == heads
    if revivals and shards > 1:
        assert revivals[0].reason.endswith(f", for {shards} shards")


def constant_blocks(**fields: Any) -> tuple[LayerState, ModelFacts]:
    facts = facts_of(SPEC, layer_of(SPEC, bias=True), **fields)
    return state(facts, mlp_units=EVERY, heads=EVERY, kv_heads=EVERY), facts


def test_block_that_writes_only_its_bias_keeps_one_unit_and_one_group() -> None:
    layer, facts = constant_blocks()
    revived, revivals = keep_constant_blocks(facts, layer)
    assert alive(revived, "mlp_units") == [0]
    assert (alive(revived, "heads"), alive(revived, "kv_heads")) == ([0, 1], [0])
    assert {one.reason for one in revivals} == {"the block still writes its output bias"}


def test_block_whose_constant_has_moved_goes_whole() -> None:
    layer, facts = constant_blocks()
    moved = replace(layer, moved=frozenset({"mlp", "attention"}))
    assert keep_constant_blocks(facts, moved) == (moved, [])


def test_block_whose_constant_no_post_norm_passes_goes_whole() -> None:
    spec = spec_of("gemma2", attention_bias=True)
    norms = {"model.layers.0.post_attention_layernorm": norm(weight=EVERY)}
    facts = facts_of(spec, layer_of(spec, bias=True), norms=norms)
    layer = state(facts, heads=EVERY, kv_heads=EVERY)
    assert keep_constant_blocks(facts, layer) == (layer, [])
    without_zeros = replace(facts, norms={})
    assert keep_constant_blocks(without_zeros, layer)[1]


def test_kept_constant_is_aligned_and_shared_out_as_well() -> None:
    layer, facts = constant_blocks()
    revived, revivals = revive(facts, layer, Target(align=4, tensor_parallel=2))
    assert alive(revived, "mlp_units") == list(range(8))
    assert alive(revived, "heads") == [0, 1]
    assert sum(len(one.indices) for one in revivals if one.axis == "mlp_units") == 8


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (Target(align=0), "--align 0: give a whole number of at least 1"),
        (Target(tensor_parallel=0), "--tensor-parallel 0: give a whole number of at least 1"),
        (Target(engine="tgi"), "--target-engine tgi: this release plans for torch, onnx, vllm"),
        (
            Target(tensor_parallel=3),
            "--tensor-parallel 3: layer 0 has 4 query and 2 KV heads before pruning, which no "
            "engine can share out; give a divisor of them",
        ),
    ],
)
def test_target_that_cannot_be_met_is_refused(target: Target, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        compile_plan(facts_of(SPEC), "base", target)
