"""The workloads of `sgate bench throughput` and `sgate bench latency`."""

from dataclasses import dataclass
from typing import ClassVar

from sgate_serve.bench.workload import check_counts
from sgate_serve.engines.timed import TimedSizes
from sgate_serve.options import option


@dataclass(frozen=True)
class RequestLengths:
    """The lengths of all requests, in tokens; fields have the names that `vllm bench` gives them.

    Token ids are random, drawn with `seed`; `engine_arguments` are command-line words for the
    engine. Raises EngineError for sizes that cannot be run.
    """

    input_len: int = option(128, "tokens of each prompt")
    output_len: int = option(64, "tokens that each request generates")
    num_iters: int = option(5, "rounds, in each of which every model runs twice")
    threads: int | None = option(None, "threads of the engine (default: all CPUs)")
    seed: int = option(0, "seed of the token ids and of the confidence intervals")
    engine_arguments: tuple[str, ...] = ()

    length_flags: ClassVar[str] = "--input-len or --output-len"
    counts: ClassVar[tuple[str, ...]] = ("input_len", "output_len", "num_iters")

    def __post_init__(self) -> None:
        check_counts(self, self.counts)

    @property
    def model_len(self) -> int:
        return self.input_len + self.output_len


@dataclass(frozen=True)
class ThroughputWorkload(RequestLengths):
    """A queue of requests, of which at most `max_num_seqs` run at a time."""

    num_prompts: int = option(64, "requests in the queue")
    max_num_seqs: int = option(16, "requests that run at a time, at most")

    counts: ClassVar[tuple[str, ...]] = (*RequestLengths.counts, "num_prompts", "max_num_seqs")

    @property
    def num_requests(self) -> int:
        return self.num_prompts

    @property
    def sizes(self) -> TimedSizes:
        return TimedSizes(min(self.max_num_seqs, self.num_prompts), self.model_len, self.threads)


@dataclass(frozen=True)
class LatencyWorkload(RequestLengths):
    """A batch of requests that arrive and run together."""

    batch_size: int = option(8, "requests in the batch")

    counts: ClassVar[tuple[str, ...]] = (*RequestLengths.counts, "batch_size")

    @property
    def num_requests(self) -> int:
        return self.batch_size

    @property
    def sizes(self) -> TimedSizes:
        return TimedSizes(self.batch_size, self.model_len, self.threads)


OfflineWorkload = ThroughputWorkload | LatencyWorkload
