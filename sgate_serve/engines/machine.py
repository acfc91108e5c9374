"""What a machine can do: bytes a second that it reads and copies, operations a second of products.

Decoding is bound by the first, a prefill by the second. An engine measures them with its own
kernels in a second or two, so that they are what a model on it could reach at best.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CPU = "cpu"
# As large as the weights of a small language model, and larger than the caches of most CPUs.
STREAM_BYTES = 2**28
# The product whose rate is measured: [rows, size] times [size, size].
PRODUCT_ROWS, PRODUCT_SIZE = 256, 2048
PRODUCT_OPERATIONS = 2 * PRODUCT_ROWS * PRODUCT_SIZE**2
SECONDS = 0.3


@dataclass(frozen=True)
class MachineRates:
    """Bytes a second read, bytes a second read and written, and operations a second of products.

    `products` has a rate for each type of numbers that the engine can multiply on `device`.
    """

    read_bytes: float
    copied_bytes: float
    products: Mapping[str, float]
    device: str = CPU


def fastest_seconds(run: Callable[[], object]) -> float:
    """Return the shortest time of a call, repeated for `SECONDS` and at least 3 times."""
    run()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
