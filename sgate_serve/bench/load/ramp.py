"""A request rate that grows over the run, in the way and under the names of `vllm bench serve`."""

from bisect import bisect_right
from dataclasses import dataclass

from sgate_serve.errors import BenchError, did_you_mean

# Requests per second, more than a client can send.
MOST_RATE = 1e5
STRATEGIES = LINEAR, EXPONENTIAL = ("linear", "exponential")


@dataclass(frozen=True)
class Ramp:
    """A rate that grows from `start` to `end` requests per second.

    It depends on a request's number, not on the time: from each request to the next it grows by the
    same difference (linear) or factor (exponential), as in vLLM 0.32. Raises BenchError naming the
    flag of a value that cannot be run.
    """

    strategy: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            hint = did_you_mean(self.strategy, STRATEGIES)
            raise BenchError(
                f"--ramp-up-strategy {self.strategy}: give {LINEAR} or {EXPONENTIAL}{hint}"
            )
        if not self.start > 0:
            raise BenchError(f"--ramp-up-start-rps {self.start:g}: must be above 0")
        if self.end > MOST_RATE:
            raise BenchError(f"--ramp-up-end-rps {self.end:g}: give at most {MOST_RATE:,.0f}")
        if not self.end > self.start:
            raise BenchError(
                f"--ramp-up-end-rps {self.end:g}: must be above --ramp-up-start-rps "
                f"{self.start:g}; for a constant rate give --request-rate"
            )

    def rates(self, num: int) -> list[float]:
        """Return the rate at which each of `num` requests arrives: `start` first, `end` last."""
        shares = [index / max(num - 1, 1) for index in range(num)]
        if self.strategy == LINEAR:
            return [self.start + (self.end - self.start) * share for share in shares]
        return [self.start * (self.end / self.start) ** share for share in shares]

    def num_within(self, seconds: float) -> int:
        """Return how many requests a ramp has that takes so many seconds, at least 1."""
        most = int(seconds * self.end) + 2
        return max(1, bisect_right(range(most), seconds, key=self._seconds) - 1)

    def _seconds(self, num: int) -> float:
        """Return the mean time in which `num` requests arrive."""
        return sum(1 / rate for rate in self.rates(num))
