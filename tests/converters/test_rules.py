"""Each rule on facts made by hand, with the counterexamples of its docstring."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from converters.rules import LayerFacts, Zeros, compile_plan, find_dead, zeros_of_masks
from converters.rules.attention import dead_heads, dead_kv_heads, dead_value_dims
from converters.rules.blocks import silent_blocks
from converters.rules.facts import Flags, Liveness, Rule
from converters.rules.mlp import silent_units, unread_units
from sgate_serve.errors import PlanError
from sgate_serve.family import DOWN, GATE, OUTPUT, QUERY, UP, VALUE
from sgate_serve.plan import Gate
from sgate_serve.shapes import LayerShape
from sgate_serve.spec import ModelSpec

HIDDEN = 6
SHAPE = LayerShape(num_heads=4, num_kv_heads=2, head_dim=2, mlp_units=3)


def no_zeros(bias: bool = False) -> dict[str, Zeros]:
    """Nothing is zero; without `bias` every bias entry counts as zero, as where none exists."""
    return {
        role: Zeros(np.zeros(rows, np.bool_), np.zeros(columns, np.bool_), np.full(rows, not bias))
        for role, (rows, columns) in SHAPE.linear_shapes(HIDDEN).items()
    }


def facts(
    changes: Mapping[str, Zeros] | None = None, activation: str = "silu", bias: bool = False
) -> LayerFacts:
    return LayerFacts(SHAPE, {**no_zeros(bias), **(changes or {})}, activation)


def flags(size: int, *indices: int) -> Flags:
    return np.isin(np.arange(size), indices)


def zeros(
    role: str,
    rows: tuple[int, ...] = (),
    columns: tuple[int, ...] = (),
    bias: tuple[int, ...] | None = None,
) -> Zeros:
    """Zeros of one linear by index; `bias=None` means the linear has no bias."""
    num_rows, num_columns = SHAPE.linear_shapes(HIDDEN)[role]
    bias_zeros = np.ones(num_rows, np.bool_) if bias is None else flags(num_rows, *bias)
    return Zeros(flags(num_rows, *rows), flags(num_columns, *columns), bias_zeros)


def dead(rule: Rule, given: LayerFacts, axis: str, live: Liveness | None = None) -> list[int]:
    found: Flags = np.zeros_like(getattr(Liveness.of(SHAPE), axis))
    for death in rule(given, live or Liveness.of(SHAPE)):
        if death.axis == axis:
            found = found | death.dead
    return np.flatnonzero(found).tolist()


def test_unit_with_a_zero_down_column_dies_even_with_live_biases() -> None:
    given = facts({DOWN: zeros(DOWN, columns=(1,), bias=())}, bias=True)
    assert dead(unread_units, given, "mlp_units") == [1]


def test_unit_with_a_zero_up_row_dies_unless_its_bias_lives() -> None:
    assert dead(silent_units, facts({UP: zeros(UP, rows=(2,))}), "mlp_units") == [2]
    with_bias = facts({UP: zeros(UP, rows=(2,), bias=())})
    assert dead(silent_units, with_bias, "mlp_units") == []


@pytest.mark.parametrize(("activation", "expected"), [("silu", [0]), ("sigmoid", [])])
def test_unit_with_a_zero_gate_row_dies_only_where_the_activation_is_zero_at_zero(
    activation: str, expected: list[int]
) -> None:
    given = facts({GATE: zeros(GATE, rows=(0,))}, activation)
    assert dead(silent_units, given, "mlp_units") == expected


def test_value_dimension_dies_when_silent_unless_its_bias_lives() -> None:
    assert dead(dead_value_dims, facts({VALUE: zeros(VALUE, rows=(1,))}), "value_dims") == [1]
    with_bias = facts({VALUE: zeros(VALUE, rows=(1,), bias=())})
    assert dead(dead_value_dims, with_bias, "value_dims") == []


def test_value_dimension_is_unread_only_when_every_living_head_of_its_group_ignores_it() -> None:
    # Columns 0 and 2 are dimension 0 of heads 0 and 1, which share KV head 0.
    one_head = facts({OUTPUT: zeros(OUTPUT, columns=(0,))})
    assert dead(dead_value_dims, one_head, "value_dims") == []
    live = Liveness.of(SHAPE).without("heads", flags(4, 1))
    assert dead(dead_value_dims, one_head, "value_dims", live) == [0]
    both = facts({OUTPUT: zeros(OUTPUT, columns=(0, 2))})
    assert dead(dead_value_dims, both, "value_dims") == [0]


def test_head_dies_when_its_output_columns_are_zero_or_its_values_are_dead() -> None:
    given = facts({OUTPUT: zeros(OUTPUT, columns=(2, 3))})
    assert dead(dead_heads, given, "heads") == [1]
    silent = np.array([[True, True], [False, False]])
    live = Liveness.of(SHAPE).without("value_dims", silent)
    assert dead(dead_heads, facts(), "heads", live) == [0, 1]


def test_head_with_zero_query_lives_because_it_averages_values() -> None:
    live, removals = find_dead(facts({QUERY: zeros(QUERY, rows=(0, 1))}))
    assert live.heads.all()
    assert removals == []


def test_kv_head_dies_with_its_last_query_head() -> None:
    live = Liveness.of(SHAPE)
    assert dead(dead_kv_heads, facts(), "kv_heads", live.without("heads", flags(4, 0))) == []
    assert dead(dead_kv_heads, facts(), "kv_heads", live.without("heads", flags(4, 0, 1))) == [0]


def test_block_that_writes_nothing_dies_and_one_with_a_live_bias_does_not() -> None:
    everything = tuple(range(HIDDEN))
    given = facts(
        {DOWN: zeros(DOWN, rows=everything), OUTPUT: zeros(OUTPUT, rows=everything, bias=())}
    )
    assert dead(silent_blocks, given, "mlp_units") == [0, 1, 2]
    assert dead(silent_blocks, given, "heads") == []


def test_fixpoint_carries_dead_values_to_the_kv_head() -> None:
    live, removals = find_dead(facts({VALUE: zeros(VALUE, rows=(2, 3))}))
    assert np.flatnonzero(live.heads).tolist() == [0, 1]
    assert np.flatnonzero(live.kv_heads).tolist() == [0]
    causes = {removal.axis: removal.cause for removal in removals}
    assert causes["heads"] == "value rows and biases are zero"


SPEC = ModelSpec.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "intermediate_size": 3,
        "vocab_size": 5,
    },
    "config.json",
)


def test_every_kv_head_keeps_as_many_query_heads_as_the_largest_group() -> None:
    # Head 0 dies in group 0; group 1 keeps two heads, so one dead head of group 0 stays.
    given = no_zeros() | {OUTPUT: zeros(OUTPUT, columns=(0, 1))}
    layer = compile_plan(SPEC, [given], "base").layers[0]
    assert layer.heads == (0, 1, 2, 3)
    assert [revival.indices for revival in layer.revivals] == [(0,)]
    assert layer.removals[0].indices == (0,)


@pytest.mark.parametrize(("align", "expected"), [(1, (1,)), (2, (0, 1)), (64, (0, 1, 2))])
def test_alignment_revives_the_first_dead_units_up_to_the_dense_width(
    align: int, expected: tuple[int, ...]
) -> None:
    given = no_zeros() | {DOWN: zeros(DOWN, columns=(0, 2))}
    layer = compile_plan(SPEC, [given], "base", align).layers[0]
    assert layer.mlp_units == expected


def test_alignment_leaves_a_removed_block_removed() -> None:
    given = no_zeros() | {DOWN: zeros(DOWN, columns=(0, 1, 2))}
    layer = compile_plan(SPEC, [given], "base", align=2).layers[0]
    assert layer.skipped_blocks == ("mlp",)


def test_block_that_writes_only_its_bias_keeps_one_unit_and_one_group() -> None:
    spec = replace(SPEC, biased_roles=frozenset({OUTPUT, DOWN}))
    given = no_zeros(bias=True) | {
        DOWN: zeros(DOWN, columns=(0, 1, 2), bias=()),
        OUTPUT: zeros(OUTPUT, columns=tuple(range(8)), bias=()),
    }
    layer = compile_plan(spec, [given], "base").layers[0]
    assert (layer.mlp_units, layer.heads, layer.kv_heads) == ((0,), (0, 1), (0,))
    assert {revival.reason for revival in layer.revivals} == {
        "the block still writes its output bias"
    }


def test_closed_columns_zero_the_rows_but_not_the_bias() -> None:
    spec = replace(SPEC, biased_roles=frozenset({UP, GATE}))
    up, gate = (spec.family.linear(0, role) for role in (UP, GATE))
    biases = {up: np.array([0, 1, 1], np.float32), gate: np.ones(3, np.float32)}
    masks = {
        up: Gate(columns=np.zeros(HIDDEN, np.float32)),
        gate: Gate(rows=np.array([1, 1, 0], np.float32)),
    }
    (found,) = zeros_of_masks(spec, masks, biases)
    assert found[UP].rows.all()
    assert found[UP].bias.tolist() == [True, False, False]
    assert found[GATE].rows.tolist() == found[GATE].bias.tolist() == [False, False, True]
    # Unit 0 is silent by its up row, unit 2 by its gate row; unit 1 is a constant, not dead.
    assert compile_plan(spec, [found], "base").layers[0].mlp_units == (1,)


def test_alignment_below_one_is_refused() -> None:
    with pytest.raises(PlanError, match="--align 0: give a whole number of at least 1"):
        compile_plan(SPEC, [no_zeros()], "base", align=0)
