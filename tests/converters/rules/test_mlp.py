"""Rules 1 and 2 of MLP units."""

import pytest

from converters.rules.mlp import constant_units, silent_units, unread_units
from tests.converters.rules.by_hand import (
    EVERY,
    facts_of,
    found_by,
    layer_of,
    spec_of,
    view_of,
    without,
)

GATED, UNGATED = spec_of(), spec_of("gpt2")


def test_unit_with_a_zero_down_column_dies_even_with_live_biases() -> None:
    facts = facts_of(GATED, layer_of(GATED, bias=True, down={"columns": (1,)}))
    assert found_by(unread_units, facts, "mlp_units") == [1]


def test_unit_with_a_zero_up_row_dies_unless_its_bias_lives() -> None:
    facts = facts_of(GATED, layer_of(GATED, up={"rows": (2,)}))
    assert found_by(silent_units, facts, "mlp_units") == [2]
    with_bias = facts_of(GATED, layer_of(GATED, bias=True, up={"rows": (0, 2), "bias": (2,)}))
    assert found_by(silent_units, with_bias, "mlp_units") == [2]


@pytest.mark.parametrize(
    ("activation", "expected"), [("silu", [0]), ("gelu", [0]), ("sigmoid", []), ("laplace", [])]
)
@pytest.mark.parametrize(("family", "role"), [("llama", "gate"), ("gpt2", "up")])
def test_unit_before_the_activation_dies_only_where_that_is_zero_at_zero(
    family: str, role: str, activation: str, expected: list[int]
) -> None:
    key = "activation_function" if family == "gpt2" else "hidden_act"
    spec = spec_of(family, **{key: activation})
    facts = facts_of(spec, layer_of(spec, bias=True, **{role: {"rows": (0, 1), "bias": (0,)}}))
    assert found_by(silent_units, facts, "mlp_units") == expected


def test_bias_that_relu_makes_zero_of_leaves_no_constant() -> None:
    spec = spec_of("gpt2", activation_function="relu")
    up = {"rows": (0, 1), "bias": (), "inactive": (1, 2)}
    assert found_by(silent_units, facts_of(spec, layer_of(spec, up=up)), "mlp_units") == [1]


def test_bias_below_zero_that_a_fold_changed_may_be_active() -> None:
    spec = spec_of("gpt2", activation_function="relu")
    at = view_of(facts_of(spec, layer_of(spec, up={"rows": EVERY, "bias": (), "inactive": EVERY})))
    folded = at.layer.with_folded("up", at.layer.mlp_units)
    assert found_by(silent_units, view_of(at.facts, folded), "mlp_units") == []


def test_ungated_unit_without_a_row_is_a_constant() -> None:
    facts = facts_of(UNGATED, layer_of(UNGATED, up={"rows": (1,), "bias": ()}))
    assert found_by(constant_units, facts, "mlp_units", constants=True) == [1]


def test_gated_unit_is_a_constant_only_without_both_rows() -> None:
    layer = layer_of(GATED, bias=True, up={"rows": (0, 1), "bias": ()}, gate={"rows": (1, 2)})
    facts = facts_of(GATED, layer)
    assert found_by(silent_units, facts, "mlp_units") == []
    assert found_by(constant_units, facts, "mlp_units", constants=True) == [1]


def test_constant_under_an_activation_that_nobody_knows_stays() -> None:
    spec = spec_of("gpt2", activation_function="laplace")
    facts = facts_of(spec, layer_of(spec, up={"rows": (1,), "bias": ()}))
    assert found_by(constant_units, facts, "mlp_units") == []


@pytest.mark.parametrize("rule", [unread_units, silent_units, constant_units])
def test_no_units_no_findings(rule: object) -> None:
    at = without(facts_of(GATED), mlp_units=EVERY)
    assert found_by(rule, at, "mlp_units") == []  # type: ignore[arg-type]
