"""What one comparison measures, and one timed run of each phase on one loaded model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sgate_serve.engines.scheduler import Runner
from sgate_serve.errors import EngineError
from sgate_serve.options import option

Measure = Callable[[Runner], float]


@dataclass(frozen=True)
class Workload:
    """Sizes of the phases and how often each is run; token ids are random, drawn with `seed`."""

    rounds: int = option(9, "rounds of dense, pruned, dense', dense', pruned, dense")
    decode_steps: int = option(32, "decode steps in one timed run")
    context_tokens: int = option(32, "tokens in each row's cache before decoding")
    prefill_tokens: int = option(256, "tokens of the timed prompt")
    threads: int | None = option(None, "threads of the engine (default: all CPUs)")
    seed: int = option(0, "seed of the token ids and of the confidence intervals")

    def __post_init__(self) -> None:
        for name in ("rounds", "decode_steps", "context_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise EngineError(f"--{flag} {getattr(self, name)}: must be at least 1")

    @property
    def model_len(self) -> int:
        """Tokens that one row must be able to hold."""
        return max(self.context_tokens + self.decode_steps, self.prefill_tokens)


BATCHES = (1, 8)
PREFILL = "prefill"


def phases(workload: Workload) -> Mapping[str, Measure]:
    """Return phase name → a function that runs it once and returns its seconds."""
    decode = {f"decode_batch_{batch}": _decode(workload, batch) for batch in BATCHES}
    return {**decode, PREFILL: _prefill(workload)}


def tokens_per_run(workload: Workload, phase: str) -> int:
    """Return how many tokens one timed run of a phase computes."""
    if phase == PREFILL:
        return workload.prefill_tokens
    return workload.decode_steps * int(phase.rpartition("_")[2])


def _decode(workload: Workload, batch: int) -> Measure:
    generator = np.random.default_rng(workload.seed)
    slots = range(batch)

    def measure(runner: Runner) -> float:
        for slot in slots:
            runner.prefill(slot, _tokens(generator, runner, workload.context_tokens))
        tokens = _tokens(generator, runner, batch)
        start = time.perf_counter()
        for _ in range(workload.decode_steps):
            runner.decode(slots, tokens)
        seconds = time.perf_counter() - start
        for slot in slots:
            runner.release(slot)
        return seconds

    return measure


def _prefill(workload: Workload) -> Measure:
    generator = np.random.default_rng(workload.seed)

    def measure(runner: Runner) -> float:
        tokens = _tokens(generator, runner, workload.prefill_tokens)
        start = time.perf_counter()
        runner.prefill(0, tokens)
        seconds = time.perf_counter() - start
        runner.release(0)
        return seconds

    return measure


def _tokens(generator: np.random.Generator, runner: Runner, count: int) -> list[int]:
    tokens: list[int] = generator.integers(0, runner.vocab_size, count).tolist()
    return tokens
