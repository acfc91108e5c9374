"""Prometheus metrics under vLLM's names, so that dashboards and load tools for vLLM work.

Each model has its own registry. Times are in seconds, measured when the event loop receives a
token from the engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)

from sgate_serve.engines.contract import EngineStats, FinishReason

LABELS = ("model_name",)
FIRST_TOKEN_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    40.0,
)
NEXT_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5)
REQUEST_BUCKETS = (0.1, 0.3, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)

# The phases of a request.
PHASES = {
    "queue": "Request to its slot.",
    "prefill": "Slot to first token.",
    "decode": "First token to last token.",
    "inference": "Slot to last token.",
}


class ServerMetrics:
    """The metrics of one served model."""

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self.registry = CollectorRegistry()
        self._name = model_name
        self._running = self._gauge("num_requests_running", "Requests in a slot.")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue.")
        self._cache = self._gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the KV cache."
        )
        self._prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the KV cache."
        )
        self._drafts = self._counter("spec_decode_num_drafts", "Drafts, looked up or of a model.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens drafted.")
        self._accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens", "Drafted tokens that were right."
        )
        self._preemptions = self._counter(
            "num_preemptions", "Times that a request gave back its slot before its end."
        )
        self._counted = EngineStats(0, 0, 0.0)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self._generated_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._ended = Counter(
            "vllm:request_success",
            "Requests ended, by reason.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Request to first token.", FIRST_TOKEN_BUCKETS
        )
        self._next_token = self._histogram(
            "inter_token_latency_seconds", "Token to next token.", NEXT_TOKEN_BUCKETS
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "Request to its end.", REQUEST_BUCKETS
        )
        self._phases = {
            phase: self._histogram(f"request_{phase}_time_seconds", text, REQUEST_BUCKETS)
            for phase, text in PHASES.items()
        }
        self._mean_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time from token to next token of a request that ended.",
            NEXT_TOKEN_BUCKETS,
        )
        token_buckets = _token_buckets(max_model_len)
        self._prompt_length = self._histogram(
            "request_prompt_tokens", "Tokens of each prompt.", token_buckets
        )
        self._generated_length = self._histogram(
            "request_generation_tokens", "Tokens generated for each choice.", token_buckets
        )
        self._max_tokens = self._histogram(
            "request_params_max_tokens", "Tokens that each choice may have.", token_buckets
        )

    def update(self, stats: EngineStats) -> None:
        """Take over what the engine's `stats` say."""
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._cache.set(stats.kv_cache_usage)
        before, self._counted = self._counted, stats
        self._prefix_queries.inc(stats.prefix_queries - before.prefix_queries)
        self._prefix_hits.inc(stats.prefix_hits - before.prefix_hits)
        self._drafts.inc(stats.drafts - before.drafts)
        self._draft_tokens.inc(stats.draft_tokens - before.draft_tokens)
        self._accepted_tokens.inc(stats.accepted_tokens - before.accepted_tokens)
        self._preemptions.inc(stats.preemptions - before.preemptions)

    def clock(self, num_prompt_tokens: int, max_tokens: int) -> "RequestClock":
        """Start the clock of one engine request."""
        self._max_tokens.observe(max_tokens)
        return RequestClock(self, num_prompt_tokens)

    def count_prompt(self, num_tokens: int) -> None:
        self._prompt_tokens.inc(num_tokens)
        self._prompt_length.observe(num_tokens)

    def count_first_token(self, seconds: float) -> None:
        self._generated_tokens.inc()
        self._first_token.observe(seconds)

    def count_next_token(self, seconds: float) -> None:
        self._generated_tokens.inc()
        self._next_token.observe(seconds)

    def count_generated(self, num_tokens: int, decode_seconds: float) -> None:
        self._generated_length.observe(num_tokens)
        if num_tokens > 1:
            self._mean_token.observe(decode_seconds / (num_tokens - 1))

    def count_phases(self, queue: float, prefill: float, decode: float) -> None:
        """Record the seconds that a request with a token spent in each phase."""
        inference = prefill + decode
        for phase, seconds in zip(PHASES, (queue, prefill, decode, inference), strict=True):
            self._phases[phase].observe(seconds)

    def count_end(self, seconds: float, reason: FinishReason) -> None:
        self._ended.labels(self._name, reason).inc()
        self._request.observe(seconds)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, LABELS, registry=self.registry).labels(self._name)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, LABELS, registry=self.registry).labels(self._name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets)
        return histogram.labels(self._name)


class RequestClock:
    """The times of one engine request, starting when it is queued.

    `num_prompt_tokens` is 0 if another request counts the same prompt.
    """

    def __init__(self, metrics: ServerMetrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._num_generated = 0
        self._start = self._first = self._last = perf_counter()
        self._admitted: float | None = None

    def read_prompt(self, admitted: float | None) -> None:
        """Count the prompt once; to be called on every event, as the first shows it was read.

        `admitted` is when the engine began with it, if it says so.
        """
        self._admitted = admitted
        if self._num_prompt_tokens:
            self._metrics.count_prompt(self._num_prompt_tokens)
            self._num_prompt_tokens = 0

    def token(self) -> None:
        """Record that a token arrived now."""
        now = perf_counter()
        if self._num_generated == 0:
            self._first = now
            self._metrics.count_first_token(now - self._start)
        else:
            self._metrics.count_next_token(now - self._last)
        self._num_generated += 1
        self._last = now

    def end(self, reason: FinishReason) -> None:
        """Record that the request ended now."""
        self._metrics.count_end(perf_counter() - self._start, reason)
        self._metrics.count_generated(self._num_generated, self._last - self._first)
        if self._admitted is not None and self._num_generated:
            queue, prefill = self._admitted - self._start, self._first - self._admitted
            self._metrics.count_phases(queue, prefill, self._last - self._first)


def text_of(registries: Sequence[CollectorRegistry]) -> bytes:
    """Return Prometheus' text format of several registries, whose families may have one name."""
    families: dict[str, Metric] = {}
    for registry in registries:
        for family in registry.collect():
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)
    return generate_latest(_Collected(tuple(families.values())))


@dataclass(frozen=True)
class _Collected:
    """Metrics as `generate_latest` reads them from a registry."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _token_buckets(max_model_len: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, ... up to the maximum length, as vLLM does."""
    steps = (factor * 10**power for power in range(19) for factor in (1, 2, 5))
    return tuple(takewhile(lambda step: step <= max_model_len, steps))
