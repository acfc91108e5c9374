"""The Plan: what follows from it, its JSON, and every way a stored one can be wrong."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.architecture.shapes import LayerShape, Lowered
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.plan import (
    BlockFold,
    ColumnFold,
    Fold,
    HeadUnitFold,
    LayerPlan,
    Lowering,
    Merge,
    Plan,
    Removal,
    Revival,
    Target,
    UnitFold,
    ValueFold,
)
from sgate_serve.plan.figures import Figures, removed
from sgate_serve.plan.json_form import plan_from_json, plan_to_json, read_plan, write_plan
from sgate_serve.plan.placement import dense_spec, place, pruned_spec
from sgate_serve.plan.targets import alignment_advice

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
    value_dims=(2, 3),
    key_dims=(2, 3),
    lowerings=(
        Lowering(("query",), "rows", "scatter", (4, 6, 7), 8, 0),
        Lowering(("gate", "up"), "columns", "gather", (0, 2, 3, 5, 7), 12, 0),
        Lowering(("down",), "rows", "dense", (1, 2), 12, 99),
    ),
    removals=(Removal("mlp_units", (1, 2, 4), "1 MLP unit never read", "down column is zero"),),
    revivals=(Revival("heads", (3,), "each KV head keeps 2 query heads"),),
)
SKIPPED = LayerPlan(1, DENSE, (), (), (), (), ())
PLAN = Plan("llama", "abc", Target(), (UNEVEN, SKIPPED), 8, 8, 300, 400)


def spelled(source: str, layer: int, *indices: int, target: str = "") -> dict[str, Any]:
    return {"source": source, "layer": layer, "indices": list(indices), "target": target}


# Every kind of fold as the format spells it, which counts units on top as a layer after the last.
SPELLED_FOLDS: Mapping[Fold, dict[str, Any]] = {
    UnitFold(0, (1,)): spelled("mlp_units", 0, 1),
    ValueFold(0, (0, 3)): spelled("value_dims", 0, 0, 3),
    ColumnFold(1, "query", (2,)): spelled("query.columns", 1, 2),
    HeadUnitFold((4, 5)): spelled("head_units", 2, 4, 5),
    BlockFold(1, "mlp", "model.norm.weight"): spelled("mlp", 1, target="model.norm.weight"),
}


def rows_and_columns(role: str) -> tuple[list[int], list[int]]:
    placed = place(PLAN, SPEC, 0, role)
    assert placed is not None
    return placed.rows.stored.tolist(), placed.columns.stored.tolist()


def test_rows_and_columns_follow_from_units_and_lowerings() -> None:
    hidden = list(range(8))
    assert rows_and_columns("down") == (hidden, [0, 3])
    assert rows_and_columns("up") == ([0, 3], [0, 2, 3, 5, 7])
    assert rows_and_columns("query") == ([4, 6, 7], hidden)
    assert rows_and_columns("key") == ([2, 3], hidden)
    assert rows_and_columns("output") == (hidden, [4, 5, 6, 7])


def test_index_vectors_place_what_is_stored_among_what_stays() -> None:
    query, up = place(PLAN, SPEC, 0, "query"), place(PLAN, SPEC, 0, "up")
    assert query is not None and query.rows.index is not None
    assert query.rows.index.tolist() == [0, 2, 3] and query.columns.index is None
    assert up is not None and up.columns.index is not None
    assert up.columns.index.tolist() == [0, 2, 3, 5, 7]
    lowered = pruned_spec(PLAN, SPEC).lowered
    name = "model.layers.0.self_attn.q_proj"
    assert lowered[name] == Lowered(rows=3)
    assert "model.layers.0.mlp.down_proj" not in lowered


def test_a_removed_block_has_no_linears() -> None:
    assert place(PLAN, SPEC, 1, "down") is None and place(PLAN, SPEC, 1, "query") is None
    assert SKIPPED.skipped_blocks == ("attention", "mlp")


def test_figures_count_block_linears_and_all_parameters() -> None:
    dense = 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 5)
    sliced = 8 * 4 * 2 + 8 * 2 * 2 + 3 * 8 * 2
    kept = sliced - 8 - 12
    figures = Figures.of(PLAN, SPEC)
    assert figures.removed == removed(PLAN, SPEC) == pytest.approx(1 - kept / dense)
    assert figures.index_free == pytest.approx(1 - sliced / dense)
    assert (figures.naive, figures.compiled) == pytest.approx((300 / dense, 400 / dense))
    # Head 3 is dead but kept: its two rows of q and columns of o.
    assert figures.revived == pytest.approx(2 * 2 * 8 / dense)
    outside, norms = 2 * 7 * 8 + 8, 2 * 8
    expected = 1 - (kept + outside + norms) / (dense + outside + 2 * norms)
    assert figures.overall == pytest.approx(expected)


def test_padding_of_heads_counts_as_executed() -> None:
    padded = Figures.of(replace(PLAN, target=Target(engine="onnx")), SPEC)
    # Heads of width 2 become 16 wide: 14 more rows of q, k, v each, and columns of o.
    extra = 14 * ((2 + 2 * 1) * 8 + 2 * 8)
    assert padded.removed - padded.executed == pytest.approx(extra / SPEC.num_gateable)


def test_json_round_trip_and_the_way_back_to_the_dense_spec(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = replace(
        PLAN,
        hidden=(0, 1, 2, 3, 4, 5, 6),
        folds=tuple(SPELLED_FOLDS),
        merges=(Merge("heads", 0, (2, 3)),),
        removals=(Removal("hidden", (7,), "7 residual dimension", "nothing writes it"),),
        base_digest="d" * 64,
    )
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert dense_spec(PLAN, pruned_spec(PLAN, SPEC), "plan") == SPEC


def test_plan_without_the_field_uniform_is_read_as_one_of_uneven_layers() -> None:
    value = plan_to_json(PLAN)
    value["target"] = {"align": 8, "tensor_parallel": 2, "engine": "vllm"}
    assert plan_from_json(value, "plan.json").target == Target(8, 2, "vllm", uniform=False)
    value["target"] = {**value["target"], "uniform": True}
    assert plan_from_json(value, "plan.json").target == Target(8, 2, "vllm", uniform=True)


def test_plans_from_before_digests_are_read() -> None:
    value = plan_to_json(replace(PLAN, base_digest="d" * 64))
    assert value.pop("base_digest") == "d" * 64
    assert plan_from_json(value, "plan.json") == PLAN


def test_folds_are_spelled_as_the_format_says() -> None:
    plan = replace(PLAN, folds=tuple(SPELLED_FOLDS))
    assert json.loads(json.dumps(plan_to_json(plan)["folds"])) == [*SPELLED_FOLDS.values()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": 3}, "layers must be a list of objects, found 3"),
        ({"layers": [4]}, "layers must be a list of objects, found [4]"),
        ({"layers": [{"index": 0}]}, "layers[0].dense is missing"),
        ({"layers": [{"index": 0, "dense": {}}]}, "layers[0].dense.num_heads is missing"),
        ({"target": None}, "target must be an object, found None"),
        (
            {"target": {"align": "wide", "tensor_parallel": 1, "engine": None}},
            "target.align must be a whole number, found 'wide'",
        ),
        (
            {"target": {"align": 1, "tensor_parallel": 1, "engine": None, "uniform": 1}},
            "target.uniform must be true or false, found 1",
        ),
        (
            {"target": {"align": 1, "tensor_parallel": 1, "uniform": False}},
            "target.engine is missing",
        ),
        (
            {"folds": [{"source": "air", "layer": 0, "indices": [], "target": ""}]},
            "folds[0].source must be one of ",
        ),
        ({"hidden": [1.5]}, "hidden must be a list of whole numbers or null, found [1.5]"),
        ({"version": None}, "format 'sgate-plan' version None, expected sgate-plan version 2"),
        ({"extra_biases": 1}, "extra_biases must be a list of strings, found 1"),
        ({"base_digest": 7}, "base_digest must be a string or null, found 7"),
    ],
)
def test_malformed_json_is_a_plan_error(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(plan_to_json(PLAN) | change, "broken.json")
    assert str(caught.value).startswith(f"broken.json is not a plan of this release: {said}")
    assert str(caught.value).endswith(("; convert the base again", "; convert again"))


@pytest.mark.parametrize("key", sorted({*plan_to_json(PLAN)} - {"format", "version"}))
def test_a_missing_key_is_named(key: str) -> None:
    value = plan_to_json(PLAN)
    del value[key]
    if key in ("base_digest", "gates_fingerprint"):
        assert plan_from_json(value, "old.json") == PLAN
        return
    with pytest.raises(PlanError, match=rf"release: {key} is missing; convert the base again$"):
        plan_from_json(value, "broken.json")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (replace(UNEVEN, mlp_units=(3, 0)), "mlp_units must be sorted, unique and below 5"),
        (replace(UNEVEN, mlp_units=(0, 5)), "mlp_units must be sorted, unique and below 5"),
        (replace(UNEVEN, kv_heads=(0,)), "every kept KV head needs the same number"),
        (replace(UNEVEN, heads=(0, 2, 3), kv_heads=(0, 1)), "every kept KV head needs the same"),
        (replace(UNEVEN, index=1), "is at position 0"),
        (replace(UNEVEN, dense=LayerShape(4, 2, 2, 6)), "layer 0: made for"),
    ],
)
def test_impossible_layers_are_refused(layer: LayerPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(PLAN, layers=(layer, SKIPPED)).check(SPEC)


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="plan is for 1 layers of llama, the checkpoint has 2"):
        replace(PLAN, layers=(UNEVEN,)).check(SPEC)
    with pytest.raises(PlanError, match="hidden of 9, but the checkpoint has 8"):
        replace(PLAN, dense_hidden=9).check(SPEC)
    with pytest.raises(PlanError, match="hidden must be sorted, unique and below 8"):
        replace(PLAN, hidden=(3, 3)).check(SPEC)


def with_units(*widths: int, dense: int = 512, target: Target = PLAN.target) -> Plan:
    shape = LayerShape(4, 2, 2, dense)
    layers = (
        LayerPlan(i, shape, tuple(range(width)), (), (), (), ()) for i, width in enumerate(widths)
    )
    return replace(PLAN, layers=tuple(layers), target=target)


BITSANDBYTES, GPTQ, K_QUANTS = "64 (bitsandbytes)", "128 (GPTQ, AWQ)", "256 (llama.cpp K-quants)"


@pytest.mark.parametrize(
    ("plan", "multiples"),
    [
        (with_units(458, 512), (BITSANDBYTES, GPTQ, K_QUANTS)),
        (with_units(448), (GPTQ, K_QUANTS)),
        (with_units(384, 256), (K_QUANTS,)),
        # No multiple of 256 fits a dense width that is none itself.
        (with_units(458, dense=640), (BITSANDBYTES, GPTQ)),
        (with_units(256, 0), ()),
        (with_units(26, dense=30), ()),
        (with_units(448, target=Target(align=64)), ()),
        (with_units(464, target=Target(align=8)), (BITSANDBYTES, GPTQ, K_QUANTS)),
    ],
)
def test_advice_names_the_alignments_that_4_bit_kernels_want(
    plan: Plan, multiples: tuple[str, ...]
) -> None:
    expected = f"for 4-bit kernels of other tools: --uniform --align {' or '.join(multiples)}"
    assert alignment_advice(plan) == (expected if multiples else None)


def test_advice_for_a_uniform_plan_does_not_repeat_its_flag() -> None:
    plan = with_units(458, target=Target(uniform=True))
    assert str(alignment_advice(plan)).startswith("for 4-bit kernels of other tools: --align 64")


def test_unknown_axis_is_refused() -> None:
    value = plan_to_json(PLAN)
    value["layers"][0]["revivals"][0]["axis"] = "colour"
    with pytest.raises(PlanError, match=r"axis must be one of .*, found 'colour'"):
        plan_from_json(value, "plan.json")
