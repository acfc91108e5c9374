"""Zeros read off gates and off weights."""

import numpy as np

from converters.rules import zeros_of_masks, zeros_of_weight, zeros_on
from converters.rules.fixpoint import indices_of
from sgate_serve.plan import Gate
from tests.converters.rules.by_hand import HIDDEN, flags, spec_of

SPEC = spec_of(mlp_bias=True)
UP, GATE, DOWN = (SPEC.family.linear(0, role) for role in ("up", "gate", "down"))


def closed(size: int, *indices: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return (~flags(size, indices)).astype(np.float32)


def test_closed_columns_zero_the_rows_but_not_the_bias() -> None:
    biases = {UP: np.array([0, 1, 1], np.float32)}
    masks = {UP: Gate(columns=np.zeros(HIDDEN, np.float32)), GATE: Gate(rows=closed(3, 2))}
    (found,) = zeros_of_masks(SPEC, masks, biases)
    assert found["up"].rows.all() and found["up"].columns.all()
    assert indices_of(found["up"].bias) == (0,)
    assert indices_of(found["gate"].rows) == indices_of(found["gate"].bias) == (2,)


def test_a_bias_that_nobody_gave_is_live_and_one_that_is_not_there_is_zero() -> None:
    (found,) = zeros_of_masks(SPEC, {}, {})
    assert not found["down"].bias.any() and not found["down"].rows.any()
    assert found["query"].bias.all()


def test_gates_of_a_fused_module_are_split_by_role() -> None:
    phi3 = spec_of("phi3", num_attention_heads=4)
    module = phi3.family.linear(0, "gate")
    (found,) = zeros_of_masks(phi3, {module: Gate(closed(6, 1, 3), closed(HIDDEN, 7))}, {})
    assert indices_of(found["gate"].rows) == (1,)
    assert indices_of(found["up"].rows) == (0,)
    assert indices_of(found["gate"].columns) == indices_of(found["up"].columns) == (7,)


def test_zero_lines_of_a_weight_and_what_is_scattered_besides() -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1], weight[:, 2], weight[0, 0] = 0, -0.0, 0
    found = zeros_of_weight(weight, np.array([0, 1, 0], np.float32))
    assert (indices_of(found.rows), indices_of(found.columns)) == ((1,), (2,))
    assert indices_of(found.bias) == (0, 2)
    assert found.scattered == 1
    assert zeros_of_weight(weight, None).bias.all()


def test_zero_lines_on_what_is_alive() -> None:
    weight = np.array([[1, 0, 2], [3, 0, 0], [0, 4, 0]], np.float32)
    found = zeros_on(weight, flags(3, (0, 1)), flags(3, (1, 2)))
    assert indices_of(found.rows) == (1, 2)
    assert indices_of(found.columns) == (0, 1)
