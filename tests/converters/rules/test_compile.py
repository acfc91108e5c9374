"""Facts to a Plan: what it keeps, folds, merges and counts."""

from typing import Any

import pytest

from converters.rules import LAYER_RULES, MODEL_RULES, compile_plan
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import PlanError
from sgate_serve.plan import Target, UnitFold
from sgate_serve.plan.figures import Figures
from tests.converters.rules.by_hand import (
    EVERY,
    HIDDEN,
    facts_of,
    flags,
    layer_of,
    spec_of,
)

SPEC, GPT2, PHI3 = spec_of(), spec_of("gpt2"), spec_of("phi3")


def test_nothing_zero_is_the_model_itself() -> None:
    plan = compile_plan(facts_of(SPEC), "base")
    (layer,) = plan.layers
    assert layer.shape == layer.dense == SPEC.layers[0]
    assert (plan.hidden, plan.head_units, plan.dead, plan.extra_biases) == (None, None, 0, ())
    assert plan.closed == 0 and plan.base_fingerprint == "base"


def test_each_removal_names_a_rule() -> None:
    layer = layer_of(SPEC, value={"rows": (2, 3)}, down={"columns": (1,)})
    (found,) = compile_plan(facts_of(SPEC, layer), "base").layers
    assert {removal.rule for removal in found.removals} <= set(LAYER_RULES)
    assert [r.axis for r in found.removals][:2] == ["mlp_units", "value_dims"]


def test_counts_of_closed_and_dead_weights() -> None:
    plan = compile_plan(facts_of(SPEC, layer_of(SPEC, down={"columns": (1,)})), "base")
    # Closed is one column of the down projection; dead are the unit's rows as well.
    assert plan.closed == HIDDEN
    assert plan.dead == 3 * HIDDEN
    figures = Figures.of(plan, SPEC)
    assert figures.naive < figures.compiled == pytest.approx(figures.removed)


@pytest.mark.parametrize(
    ("spec", "role", "expected"),
    [
        (SPEC, "down", ("model.layers.0.mlp.down_proj",)),
        (PHI3, "down", ("model.layers.0.mlp.down_proj",)),
        (GPT2, "down", ()),
    ],
)
def test_bias_is_added_where_a_fold_needs_one(
    spec: ModelSpec, role: str, expected: tuple[str, ...]
) -> None:
    constant = {"rows": (0,), "bias": ()}
    changes: dict[str, Any] = {
        name: constant for name in ("up", "gate") if name in spec.family.linears
    }
    plan = compile_plan(facts_of(spec, layer_of(spec, **changes)), "base")
    assert plan.folds == (UnitFold(0, (0,)),)
    assert plan.extra_biases == expected


def test_no_bias_is_added_to_a_linear_that_goes() -> None:
    # All units are constant: the block goes, and its constant moves into the output bias.
    constant = {"rows": EVERY, "bias": ()}
    plan = compile_plan(facts_of(SPEC, layer_of(SPEC, up=constant, gate=constant)), "base")
    assert plan.layers[0].skipped_blocks == ("mlp",)
    assert plan.extra_biases == ("model.layers.0.self_attn.o_proj",)


def test_dimensions_and_units_that_stay_are_listed() -> None:
    layer = layer_of(SPEC, output={"rows": (4,)}, down={"rows": (4,)})
    plan = compile_plan(facts_of(SPEC, layer, unembedded=flags(HIDDEN, (4,))), "base")
    assert plan.hidden == (0, 1, 2, 3, 5, 6, 7)
    assert {removal.rule for removal in plan.removals} <= set(MODEL_RULES)
    assert plan.dense_hidden == HIDDEN


def test_price_is_the_engines_unless_given() -> None:
    layer = layer_of(SPEC, down={"rows": (0, 1)})
    by_default = compile_plan(facts_of(SPEC, layer), "base", Target(engine="onnx")).layers[0]
    assert [one.how for one in by_default.lowerings] == ["dense"]
    free = compile_plan(facts_of(SPEC, layer), "base", index_price=0).layers[0]
    assert [one.how for one in free.lowerings] == ["scatter"]


def test_shards_that_do_not_divide_the_units_are_refused() -> None:
    match = "--tensor-parallel 2: layer 0 keeps 3 of 3 MLP units, and no multiple of 2 up to 3"
    with pytest.raises(PlanError, match=match):
        compile_plan(facts_of(SPEC), "base", Target(tensor_parallel=2))
