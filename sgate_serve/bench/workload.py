"""The workload of a comparison, and the timed run of each of its phases on a loaded model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sgate_serve.engines.timed import TimedDecoder, TimedPoolingEngine, TimedSizes
from sgate_serve.errors import EngineError
from sgate_serve.options import flag_of, option

# One timed run on a loaded model of the workload's kind: a TimedDecoder or TimedPoolingEngine.
Measure = Callable[[Any], float]

# Phases: decode steps at each batch size, by names that begin so, and a prefill.
DECODE, PREFILL = "decode", "prefill"


class SizedWorkload(Protocol):
    """What decides how a model is loaded to be timed."""

    @property
    def length_flags(self) -> str:
        """The flags that decide `model_len`, for errors."""

    @property
    def engine_arguments(self) -> tuple[str, ...]:
        """Command-line words for the engine."""

    @property
    def sizes(self) -> TimedSizes:
        """The sizes that an engine must support."""

    @property
    def model_len(self) -> int:
        """The tokens that one row must be able to hold."""


@dataclass(frozen=True)
class Workload:
    """The workload of causal language models: decode steps at several batch sizes, and a prefill.

    Token ids are random, drawn with `seed`; `engine_arguments` are command-line words for the
    engine. Raises EngineError for sizes that cannot be run.
    """

    rounds: int = option(9, "rounds of dense, pruned, dense again, and the same backwards")
    decode_steps: int = option(32, "decode steps in one timed run")
    context_tokens: int = option(32, "tokens in each row's cache before decoding")
    prefill_tokens: int = option(
        256, "tokens of the timed prompt; classifiers and embedding models: 128 of each text"
    )
    threads: int | None = option(None, "threads of the engine (default: all CPUs)")
    seed: int = option(0, "seed of the token ids and of the confidence intervals")
    batches: tuple[int, ...] = option(
        (1, 8),
        "batch sizes, each a phase of its own; classifiers and embedding models: 1,32",
    )
    engine_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, ("rounds", "decode_steps", "context_tokens", "prefill_tokens"))
        _check_batches(self.batches)

    length_flags = "--prefill-tokens or --decode-steps"

    @property
    def sizes(self) -> TimedSizes:
        """The sizes that an engine must support."""
        return TimedSizes(max(self.batches), self.model_len, self.threads)

    @property
    def model_len(self) -> int:
        """The tokens that one row must be able to hold."""
        return max(self.context_tokens + self.decode_steps, self.prefill_tokens)


@dataclass(frozen=True)
class PoolingWorkload:
    """The workload of classifiers and embedding models: one call per batch size."""

    rounds: int = 9
    prefill_tokens: int = 128
    threads: int | None = None
    seed: int = 0
    batches: tuple[int, ...] = (1, 32)
    engine_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_counts(self, ("rounds", "prefill_tokens"))
        _check_batches(self.batches)

    length_flags = "--prefill-tokens"

    @property
    def sizes(self) -> TimedSizes:
        return TimedSizes(max(self.batches), self.model_len, self.threads)

    @property
    def model_len(self) -> int:
        return self.prefill_tokens


AnyWorkload = Workload | PoolingWorkload


def phases(workload: AnyWorkload) -> Mapping[str, Measure]:
    """Return phase name → a function that runs the phase once and returns its seconds."""
    if isinstance(workload, PoolingWorkload):
        return {f"batch_{batch}": _encode(workload, batch) for batch in workload.batches}
    decode = {f"{DECODE}_batch_{batch}": _decode(workload, batch) for batch in workload.batches}
    return {**decode, PREFILL: _prefill(workload)}


def tokens_per_run(workload: AnyWorkload, phase: str) -> int:
    """Return the number of tokens that one timed run of a phase processes."""
    if phase == PREFILL:
        return workload.prefill_tokens
    batch = int(phase.rpartition("_")[2])
    if isinstance(workload, PoolingWorkload):
        return batch * workload.prefill_tokens
    return batch * workload.decode_steps


def is_decode(phase: str) -> bool:
    return phase.startswith(DECODE)


def batch_of(phase: str) -> int:
    """Return the tokens of a decode step in a phase; 1 for other phases."""
    return int(phase.rpartition("_")[2]) if is_decode(phase) else 1


def steps_of(workload: AnyWorkload, phase: str) -> int:
    """Return the steps of one timed run of a phase; only decoding has several."""
    if isinstance(workload, Workload) and is_decode(phase):
        return workload.decode_steps
    return 1


def check_counts(workload: object, names: tuple[str, ...]) -> None:
    """Raise EngineError naming the first field of `names` that is below 1."""
    for name in names:
        if getattr(workload, name) < 1:
            raise EngineError(f"{flag_of(name)} {getattr(workload, name)}: must be at least 1")


def _check_batches(batches: tuple[int, ...]) -> None:
    if not batches or min(batches) < 1 or len(set(batches)) < len(batches):
        found = ",".join(map(str, batches))
        raise EngineError(f"--batches {found!r}: give different numbers, each at least 1")


def _decode(workload: Workload, batch: int) -> Measure:
    generator = np.random.default_rng(workload.seed)
    context, steps = workload.context_tokens, workload.decode_steps

    def measure(timed: TimedDecoder) -> float:
        return timed.decode_seconds(batch, context, steps, generator)

    return measure


def _prefill(workload: Workload) -> Measure:
    generator = np.random.default_rng(workload.seed)

    def measure(timed: TimedDecoder) -> float:
        return timed.prefill_seconds(workload.prefill_tokens, generator)

    return measure


def _encode(workload: PoolingWorkload, batch: int) -> Measure:
    generator = np.random.default_rng(workload.seed)

    def measure(timed: TimedPoolingEngine) -> float:
        return timed.encode_seconds(batch, workload.prefill_tokens, generator)

    return measure
