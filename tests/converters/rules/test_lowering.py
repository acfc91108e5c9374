"""Rule 12: gather, scatter or dense, by cost."""

from typing import Any

import pytest

from converters.rules.lowering import lower_layer, nonzero_weights
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Lowering, Revival
from tests.converters.rules.by_hand import EVERY, HIDDEN, facts_of, layer_of, spec_of, without

# Rows: 8 of query, 4 of key and value, 3 of gate and up; 8 columns each.
SPEC, PHI3, GPT2 = spec_of(), spec_of("phi3"), spec_of("gpt2")
ATTENTION_ROLES = ("query", "key", "value")


def lowered(
    spec: ModelSpec,
    price: int = 0,
    align: int = 1,
    revivals: tuple[Revival, ...] = (),
    dead: dict[str, Any] | None = None,
    **changes: Any,
) -> list[Lowering]:
    facts = facts_of(spec, layer_of(spec, **changes))
    return list(lower_layer(without(facts, **dead or {}).layer, revivals, align, price))


def rest(size: int, *gone: int) -> tuple[int, ...]:
    return tuple(i for i in range(size) if i not in gone)


def test_nothing_zero_nothing_lowered() -> None:
    assert lowered(SPEC) == []


def test_columns_that_no_reader_needs_are_gathered_once() -> None:
    unread: dict[str, Any] = {role: {"columns": (1, 2)} for role in ATTENTION_ROLES}
    (found,) = lowered(SPEC, price=31, **unread)
    # Two columns of 16 rows.
    assert found == Lowering(ATTENTION_ROLES, "columns", "gather", rest(8, 1, 2), 32, 31)
    (found,) = lowered(SPEC, price=32, **unread)
    assert found.how == "dense"


def test_readers_gather_apart_where_that_saves_more_than_it_costs() -> None:
    changes: dict[str, Any] = {"query": {"columns": (0, 1)}, "key": {"columns": (2, 3)}}
    # Nothing is zero in all three: the union saves nothing, 16 and 8 weights apart.
    apart = lowered(SPEC, price=0, **changes)
    assert [(one.roles, one.saved) for one in apart] == [(("query",), 16), (("key",), 8)]
    # Apart costs a launch besides the gather.
    found = {one.roles[0]: (one.how, one.cost) for one in lowered(SPEC, price=4, **changes)}
    assert found == {"query": ("gather", 8), "key": ("dense", 8)}
    assert all(one.how == "dense" for one in lowered(SPEC, price=8, **changes))


def test_one_gather_for_all_beats_three_that_save_a_little_more() -> None:
    changes: dict[str, Any] = {role: {"columns": (0, 1)} for role in ATTENTION_ROLES}
    changes["query"] = {"columns": (0, 1, 2)}
    # Together 32 - 3; apart 24 + 8 + 8 less 6 each.
    (found,) = lowered(SPEC, price=3, **changes)
    assert found.roles == ATTENTION_ROLES


def test_fused_readers_can_only_gather_together() -> None:
    phi3: dict[str, Any] = {"query": {"columns": (0, 1)}, "key": {"columns": (1, 2)}}
    assert lowered(PHI3, **phi3) == []
    phi3["value"] = {"columns": (1,)}
    (found,) = lowered(PHI3, **phi3)
    assert (found.roles, found.kept) == (ATTENTION_ROLES, rest(8, 1))


def test_rows_are_scattered_where_that_pays() -> None:
    (found,) = lowered(SPEC, price=15, down={"rows": (3, 4, 5, 6, 7)})
    assert (found.how, found.saved) == ("dense", 15)
    (found,) = lowered(SPEC, price=14, down={"rows": (3, 4, 5, 6, 7)})
    assert found == Lowering(("down",), "rows", "scatter", (0, 1, 2), 15, 14)


def test_rows_of_a_fused_module_are_scattered_by_one_index() -> None:
    changes: dict[str, Any] = {"query": {"rows": (0,)}, "value": {"rows": (1, 2)}}
    found = lowered(GPT2, price=23, **changes)
    assert [(one.roles, one.how, one.saved) for one in found] == [
        (("query",), "scatter", 8),
        (("value",), "scatter", 16),
    ]
    assert {one.how for one in lowered(GPT2, price=24, **changes)} == {"dense"}


def test_role_of_a_fused_module_may_store_nothing() -> None:
    found = lowered(GPT2, query={"rows": EVERY})
    assert [(one.roles, one.kept) for one in found] == [(("query",), ())]


def test_a_linear_of_its_own_stores_at_least_one_line() -> None:
    found = {one.roles: one.kept for one in lowered(SPEC, query={"rows": EVERY})}
    assert found[("query",)] == (0,)


def test_output_columns_are_gathered_and_rows_saved_count_what_is_left() -> None:
    output = {"columns": (0, 1, 2, 3, 4, 5), "rows": (0, 1, 2, 3)}
    found = lowered(SPEC, output=output)
    assert [(one.side, one.how, one.saved) for one in found] == [
        ("columns", "gather", 6 * 8),
        # Of each row two columns are left.
        ("rows", "scatter", 4 * 2),
    ]


def test_dead_key_dimensions_are_rows_that_are_not_stored() -> None:
    found = {one.roles: one.kept for one in lowered(SPEC, dead={"key_dims": (0, 1)})}
    # Both dimensions of KV head 0: rows 0 to 3 of its two query heads.
    assert found == {("query",): (4, 5, 6, 7), ("key",): (2, 3)}


@pytest.mark.parametrize("align", [2, 4])
@pytest.mark.parametrize("spec", [SPEC, PHI3, GPT2], ids=lambda spec: spec.family.name)
def test_cut_widths_are_multiples_of_the_alignment(spec: ModelSpec, align: int) -> None:
    columns: dict[str, Any] = {role: {"columns": rest(HIDDEN, 6)} for role in ATTENTION_ROLES}
    query = columns["query"] | {"rows": rest(HIDDEN, 6)}
    found = lowered(spec, align=align, **columns | {"query": query, "down": {"rows": (1, 2, 5, 6)}})
    assert {(one.roles[0], one.side) for one in found} == {
        ("query", "columns"),
        ("query", "rows"),
        ("down", "rows"),
    }
    for one in found:
        assert len(one.kept) == (4 if one.roles == ("down",) else align), one


def test_zeros_that_alignment_keeps_are_the_first() -> None:
    (found,) = lowered(SPEC, align=4, down={"rows": rest(HIDDEN, 5)})
    assert found.kept == (0, 1, 2, 5)


def test_columns_of_revived_heads_are_written_zero_and_so_not_stored() -> None:
    found = lowered(SPEC, revivals=(Revival("heads", (1,), "even"),))
    assert [(one.roles, one.side, one.kept) for one in found] == [
        (("output",), "columns", rest(8, 2, 3))
    ]
    # Units are sliced: their columns are a width that somebody wants.
    assert lowered(SPEC, revivals=(Revival("mlp_units", (1,), "align"),)) == []


def test_skipped_blocks_are_not_lowered() -> None:
    changes: dict[str, Any] = {"down": {"rows": (0,)}, "output": {"rows": (0,)}}
    found = lowered(SPEC, dead={"mlp_units": EVERY}, **changes)
    assert [one.roles for one in found] == [("output",)]


def test_nonzero_weights_are_those_in_living_lines_that_are_not_zero() -> None:
    facts = facts_of(SPEC, layer_of(SPEC, down={"rows": (0, 1)}))
    dense = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 3 * 8
    assert nonzero_weights(without(facts).layer) == dense - 2 * 3
    assert nonzero_weights(without(facts, mlp_units=(1, 2)).layer) == dense - 2 * 3 - 2 * 22
