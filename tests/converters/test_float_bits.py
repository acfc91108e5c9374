"""Bits of floats against arithmetic on them, for every dtype that weights are stored in."""

import numpy as np
import pytest

from converters import float_bits
from converters.float_bits import is_finite, is_zero_along
from sgate_serve.checkpoint.tensor_files import DTYPES, FLOAT_DTYPES

SMALLEST = {"F64": 5e-324, "F32": 1e-45, "F16": 6e-8, "BF16": 9.2e-41}


@pytest.mark.parametrize("name", sorted(FLOAT_DTYPES))
@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_odd_value_is_not_finite(name: str, odd: float) -> None:
    values = np.ones((3, 5)).astype(DTYPES[name])
    values[1, 2] = odd
    assert not is_finite(values)


@pytest.mark.parametrize("place", range(10))
def test_an_odd_value_is_found_in_every_block(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(float_bits, "BLOCK_VALUES", 4)
    values = np.ones(10, np.float32)
    assert is_finite(values)
    values[place] = -np.inf
    assert not is_finite(values.reshape(5, 2))


@pytest.mark.parametrize("name", sorted(FLOAT_DTYPES))
def test_the_largest_values_are_finite(name: str) -> None:
    dtype = DTYPES[name]
    largest = np.array([0x7F7F], np.uint16).view(dtype)[0] if name == "BF16" else None
    largest = np.finfo(dtype).max if largest is None else largest
    assert is_finite(np.array([largest, -largest, 0, -0.0], dtype))
    assert is_finite(np.empty((0, 4), dtype))


@pytest.mark.parametrize("name", sorted(FLOAT_DTYPES))
def test_zero_slices_are_those_that_equal_zero(name: str) -> None:
    values = np.zeros((4, 3)).astype(DTYPES[name])
    values[0] = -0.0
    values[2, 1] = SMALLEST[name]
    assert values[2, 1] != 0
    values[3, 1] = -1
    assert is_zero_along(values, axis=1).tolist() == [True, True, False, False]
    assert is_zero_along(values, axis=0).tolist() == [True, False, True]
    assert is_zero_along(values[:, :0], axis=1).all()
