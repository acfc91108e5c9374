"""Arrivals of an open loop: their rates, their shape, and that seeds repeat them."""

import math

import numpy as np
import pytest

from sgate_serve.bench.load.arrivals import arrival_times
from sgate_serve.bench.load.ramp import Ramp
from sgate_serve.errors import BenchError


@pytest.mark.parametrize("burstiness", [0.2, 1.0, 5.0])
def test_the_last_request_arrives_when_the_rate_says(burstiness: float) -> None:
    times = arrival_times([20.0] * 500, burstiness, seed=3)
    assert len(times) == 500 and times == sorted(times) and times[0] > 0
    assert times[-1] == pytest.approx(500 / 20)
    assert times == arrival_times([20.0] * 500, burstiness, seed=3)
    assert times != arrival_times([20.0] * 500, burstiness, seed=4)


def test_burstiness_is_the_shape_of_the_gaps() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        gaps = np.diff(arrival_times([5.0] * 20_000, burstiness, seed=0))
        # A gamma distribution's deviation, relative to its mean.
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_arrivals_at_once_and_degenerate_ones() -> None:
    assert arrival_times([math.inf] * 3, 1.0, seed=0) == [0.0] * 3
    assert arrival_times([], 1.0, seed=0) == []
    assert arrival_times([2.0] * 4, 1e-300, seed=0)[-1] == pytest.approx(2.0)


def test_a_ramp_grows_from_request_to_request() -> None:
    assert Ramp("linear", 2.0, 10.0).rates(5) == [2, 4, 6, 8, 10]
    assert Ramp("exponential", 1.0, 16.0).rates(5) == pytest.approx([1, 2, 4, 8, 16])
    assert Ramp("linear", 2.0, 10.0).rates(1) == [2]


@pytest.mark.parametrize("strategy", ["linear", "exponential"])
def test_a_ramp_of_a_duration_fills_it(strategy: str) -> None:
    ramp = Ramp(strategy, 1.0, 20.0)
    num = ramp.num_within(60.0)
    times = arrival_times(ramp.rates(num), 1.0, seed=0)
    assert 59.5 < times[-1] <= 60
    early, late = (sum(a <= t < a + 10 for t in times) for a in (0, 50))
    assert late > 3 * early
    assert ramp.num_within(0.01) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ("lineal", 1.0, 2.0),
            "--ramp-up-strategy lineal: give linear or .*; did you mean linear?",
        ),
        (("linear", 0.0, 2.0), "--ramp-up-start-rps 0: must be above 0"),
        (("exponential", 3.0, 3.0), "--ramp-up-end-rps 3: must be above .*; for a constant rate"),
    ],
)
def test_a_ramp_that_does_not_grow_is_refused(
    values: tuple[str, float, float], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        Ramp(*values)
