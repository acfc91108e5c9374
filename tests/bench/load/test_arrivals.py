"""Arrivals of an open loop: their rate, their shape, and that seeds repeat them."""

import math

import numpy as np
import pytest

from sgate_serve.bench.load.arrivals import arrival_times


@pytest.mark.parametrize("burstiness", [0.2, 1.0, 5.0])
def test_the_last_request_arrives_when_the_rate_says(burstiness: float) -> None:
    times = arrival_times(500, 20.0, burstiness, seed=3)
    assert len(times) == 500 and times == sorted(times) and times[0] > 0
    assert times[-1] == pytest.approx(500 / 20)
    assert times == arrival_times(500, 20.0, burstiness, seed=3)
    assert times != arrival_times(500, 20.0, burstiness, seed=4)


def test_burstiness_is_the_shape_of_the_gaps() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        gaps = np.diff(arrival_times(20_000, 5.0, burstiness, seed=0))
        # A gamma distribution's deviation, relative to its mean.
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_arrivals_at_once_and_degenerate_ones() -> None:
    assert arrival_times(3, math.inf, 1.0, seed=0) == [0.0] * 3
    assert arrival_times(0, 4.0, 1.0, seed=0) == []
    assert arrival_times(4, 2.0, 1e-300, seed=0)[-1] == pytest.approx(2.0)
