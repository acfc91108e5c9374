"""Rule 11: units between an encoder and its classifier."""

import numpy as np

from converters.rules import ModelFacts, Zeros, find_dead
from converters.rules.dense_head import dead_head_units
from converters.rules.findings import ModelFinding, ModelView
from sgate_serve.plan import HeadUnitFold
from tests.converters.rules.by_hand import (
    EVERY,
    HIDDEN,
    Indices,
    facts_of,
    flags,
    layer_of,
    spec_of,
)

CLASSIFIER = spec_of("bert", architectures=["BertForSequenceClassification"])
BASE = spec_of("bert", architectures=["BertModel"])


def inner(rows: Indices = (), bias: Indices = (), inactive: Indices = ()) -> Zeros:
    none = np.zeros(HIDDEN, np.bool_)
    return Zeros(flags(HIDDEN, rows), none, flags(HIDDEN, bias), inactive=flags(HIDDEN, inactive))


def outer(columns: Indices = (), rows: Indices = ()) -> Zeros:
    return Zeros(flags(2, rows), flags(HIDDEN, columns), np.zeros(2, np.bool_))


def findings(facts: ModelFacts) -> list[ModelFinding]:
    return list(dead_head_units(ModelView(facts, (), flags(HIDDEN, EVERY))))


def causes(**fields: Zeros) -> dict[str, list[int]]:
    facts = facts_of(CLASSIFIER, **{"inner": inner(), "outer": outer()} | fields)
    found = {one.cause: np.flatnonzero(one.dead).tolist() for one in findings(facts)}
    return {cause: dead for cause, dead in found.items() if dead}


def test_unit_that_the_classifier_does_not_read_dies() -> None:
    assert causes(outer=outer(columns=(3,))) == {"classifier column is zero": [3]}


def test_silent_unit_dies_and_a_constant_one_is_folded() -> None:
    assert causes(inner=inner(rows=(1, 2, 3), bias=(1,), inactive=(2,))) == {
        "row is zero and tanh of its bias too": [1, 2],
        "row is zero: a constant": [1, 2, 3],
    }
    facts = facts_of(CLASSIFIER, inner=inner(rows=(1, 2), bias=(1,)), outer=outer())
    found = find_dead(facts)
    # The silent one is gone before constants are looked at.
    assert found.folds == [HeadUnitFold((2,))]
    assert np.flatnonzero(~found.head_units).tolist() == [1, 2]


def test_zero_row_of_the_classifier_is_no_dead_unit() -> None:
    assert causes(outer=outer(rows=(0,))) == {}


def test_at_least_one_unit_stays() -> None:
    facts = facts_of(CLASSIFIER, inner=inner(), outer=outer(columns=EVERY, rows=EVERY))
    assert find_dead(facts).head_units.any()


def test_unit_before_a_norm_stays() -> None:
    spec = spec_of("modernbert", architectures=["ModernBertForSequenceClassification"])
    facts = facts_of(spec, inner=inner(rows=(1, 2), bias=(1,)), outer=outer(columns=(3,)))
    assert findings(facts) == []


def test_model_without_a_classifier_has_no_units_on_top() -> None:
    facts = facts_of(BASE, layer_of(BASE), inner=inner(rows=EVERY), outer=outer())
    assert findings(facts) == []
