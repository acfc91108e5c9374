"""When the requests of an open loop arrive, whatever the server does."""

from collections.abc import Sequence

import numpy as np


def arrival_times(rates: Sequence[float], burstiness: float, seed: int) -> list[float]:
    """Return the seconds after the start at which requests arrive, in order, each at its own rate.

    The gap before a request follows a gamma distribution of shape `burstiness` and mean 1 / rate: 1
    is a Poisson process, less comes in bursts, more is more even. The gaps are scaled so that the
    last request arrives after the sum of their means, so that seeds do not differ in their rate;
    `vllm bench serve` scales those of a constant rate alone. Infinite rates let all arrive at once.
    """
    means = 1 / np.asarray(rates, dtype=float)
    times = np.cumsum(np.random.default_rng(seed).gamma(burstiness, means / burstiness))
    total = means.sum()
    if not times.any():  # infinite rates, or a burstiness so small that gaps round to nothing
        return [float(total)] * len(rates)
    return [float(time) for time in times * (total / times[-1])]
