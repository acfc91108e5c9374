"""The Plan: what follows from it, its JSON, and every way a stored one can be wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.errors import PlanError
from sgate_serve.family import DOWN, KEY, OUTPUT, QUERY, UP
from sgate_serve.plan import LayerPlan, Plan, Removal, Revival
from sgate_serve.shapes import LayerShape
from sgate_serve.spec import ModelSpec

SPEC = ModelSpec.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "intermediate_size": 5,
        "vocab_size": 7,
    },
    "config.json",
)
DENSE = SPEC.layers[0]
UNEVEN = LayerPlan(
    index=0,
    dense=DENSE,
    mlp_units=(0, 3),
    heads=(2, 3),
    kv_heads=(1,),
    removals=(Removal("mlp_units", (1, 2, 4), "1 MLP unit never read", "down column is zero"),),
    revivals=(Revival("heads", (3,), "each KV head keeps 2 query heads"),),
)
SKIPPED = LayerPlan(1, DENSE, (), (), ())
PLAN = Plan("llama", "abc", 1, (UNEVEN, SKIPPED))


def test_rows_and_columns_follow_from_the_units() -> None:
    down, up = UNEVEN.linear(DOWN), UNEVEN.linear(UP)
    query, key, output = (UNEVEN.linear(role) for role in (QUERY, KEY, OUTPUT))
    assert down is not None and down.rows is None and down.columns is not None
    assert down.columns.tolist() == [0, 3]
    assert up is not None and up.rows is not None and up.rows.tolist() == [0, 3]
    assert query is not None and query.rows is not None and query.rows.tolist() == [4, 5, 6, 7]
    assert key is not None and key.rows is not None and key.rows.tolist() == [2, 3]
    assert output is not None and output.columns is not None
    assert output.columns.tolist() == [4, 5, 6, 7]


def test_a_removed_block_has_no_linears_and_a_whole_axis_is_not_indexed() -> None:
    assert SKIPPED.linear(DOWN) is None and SKIPPED.linear(QUERY) is None
    assert SKIPPED.skipped_blocks == ("attention", "mlp")
    whole = LayerPlan(0, DENSE, tuple(range(5)), tuple(range(4)), (0, 1)).linear(QUERY)
    assert whole is not None and whole.rows is None


def test_removed_fractions_count_block_linears_and_all_parameters() -> None:
    dense = 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 5)
    kept = 8 * 4 * 2 + 8 * 2 * 2 + 3 * 8 * 2
    assert PLAN.removed(SPEC) == pytest.approx(1 - kept / dense)
    outside, norms = 2 * 7 * 8 + 8, 2 * 8
    expected = 1 - (kept + outside + norms) / (dense + outside + 2 * norms)
    assert PLAN.removed_overall(SPEC) == pytest.approx(expected)


def test_json_round_trip_and_the_way_back_to_the_dense_spec(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.write(path)
    assert Plan.read(path) == PLAN
    assert PLAN.dense_spec(PLAN.spec(SPEC)) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 3},
        {"layers": [{"index": 0}]},
        {"align": "wide"},
        {"version": None},
        {"extra_biases": 1},
    ],
)
def test_malformed_json_is_a_plan_error(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"broken.json is no plan of this release"):
        Plan.from_json(PLAN.to_json() | change, "broken.json")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (replace(UNEVEN, mlp_units=(3, 0)), "mlp_units must be sorted, unique and below 5"),
        (replace(UNEVEN, mlp_units=(0, 5)), "mlp_units must be sorted, unique and below 5"),
        (replace(UNEVEN, kv_heads=(0,)), "every kept KV head needs the same number"),
        (replace(UNEVEN, heads=(0, 2, 3), kv_heads=(0, 1)), "every kept KV head needs the same"),
        (replace(UNEVEN, index=1), "stands at position 0"),
        (replace(UNEVEN, dense=LayerShape(4, 2, 2, 6)), "layer 0: made for"),
    ],
)
def test_impossible_layers_are_refused(layer: LayerPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(PLAN, layers=(layer, SKIPPED)).check(SPEC)


def test_plan_of_another_model_or_version_is_refused() -> None:
    with pytest.raises(PlanError, match="plan is for 1 layers of llama, the checkpoint has 2"):
        replace(PLAN, layers=(UNEVEN,)).check(SPEC)
    with pytest.raises(PlanError, match="plan version 9, this release reads 1"):
        replace(PLAN, version=9).check(SPEC)


def test_unknown_axis_is_refused() -> None:
    value = PLAN.to_json()
    value["layers"][0]["removals"][0]["axis"] = "colour"
    with pytest.raises(PlanError, match="unknown axis 'colour'"):
        Plan.from_json(value, "plan.json")
