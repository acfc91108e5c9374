"""What one comparison measures, and one timed run of each phase on one loaded model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sgate_serve.engines.timed import Timed, TimedSizes
from sgate_serve.errors import EngineError
from sgate_serve.options import flag_of, option

Measure = Callable[[Timed], float]

PREFILL = "prefill"


@dataclass(frozen=True)
class Workload:
    """Sizes of the phases, how often each is run, and what the engine is told besides.

    Token ids are random, drawn with `seed`. Raises EngineError for sizes that cannot be run.
    """

    rounds: int = option(9, "rounds of dense, pruned, dense again, and the same backwards")
    decode_steps: int = option(32, "decode steps in one timed run")
    context_tokens: int = option(32, "tokens in each row's cache before decoding")
    prefill_tokens: int = option(256, "tokens of the timed prompt")
    threads: int | None = option(None, "threads of the engine (default: all CPUs)")
    seed: int = option(0, "seed of the token ids and of the confidence intervals")
    batches: tuple[int, ...] = option((1, 8), "rows decoded at once, a phase for each number")
    engine_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rounds", "decode_steps", "context_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{flag_of(name)} {getattr(self, name)}: must be at least 1")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            found = ",".join(map(str, self.batches))
            raise EngineError(f"--batches {found!r}: give different numbers, each at least 1")

    @property
    def sizes(self) -> TimedSizes:
        """What an engine must be able to hold."""
        return TimedSizes(max(self.batches), self.model_len, self.threads)

    @property
    def model_len(self) -> int:
        """Tokens that one row must be able to hold."""
        return max(self.context_tokens + self.decode_steps, self.prefill_tokens)


def phases(workload: Workload) -> Mapping[str, Measure]:
    """Return phase name → a function that runs it once and returns its seconds."""
    decode = {f"decode_batch_{batch}": _decode(workload, batch) for batch in workload.batches}
    return {**decode, PREFILL: _prefill(workload)}


def tokens_per_run(workload: Workload, phase: str) -> int:
    """Return how many tokens one timed run of a phase computes."""
    if phase == PREFILL:
        return workload.prefill_tokens
    return workload.decode_steps * int(phase.rpartition("_")[2])


def _decode(workload: Workload, batch: int) -> Measure:
    generator = np.random.default_rng(workload.seed)
    context, steps = workload.context_tokens, workload.decode_steps
    return lambda timed: timed.decode_seconds(batch, context, steps, generator)


def _prefill(workload: Workload) -> Measure:
    generator = np.random.default_rng(workload.seed)
    return lambda timed: timed.prefill_seconds(workload.prefill_tokens, generator)
