"""When the requests of an open loop arrive, whatever the server does."""

import math

import numpy as np


def arrival_times(num: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Return the seconds after the start at which `num` requests arrive, in order.

    The gaps follow a gamma distribution of shape `burstiness` and mean 1 / rate: 1 is a Poisson
    process, less comes in bursts, more is more even. They are scaled so that the last request
    arrives at num / rate, as `vllm bench serve` does, so that seeds do not differ in their rate. An
    infinite rate lets all arrive at once.
    """
    if math.isinf(rate) or num == 0:
        return [0.0] * num
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), num)
    times = np.cumsum(gaps)
    if times[-1] == 0:  # a burstiness so small that all gaps round to nothing
        return [num / rate] * num
    return [float(time) for time in times * (num / rate / times[-1])]
