"""Figures of a load from the traces of its requests, with the names of `vllm bench serve`.

Formulas follow vLLM 0.32, so that figures of both can be compared: failed requests have no part in
times or tokens, a request of one token has no TPOT, and ITL are those of all requests together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgate_serve.bench.load.trace import Trace

PERCENTILES = (90, 99)


def metrics_of(
    traces: Sequence[Trace], seconds: float, objectives: Mapping[str, float]
) -> dict[str, Any]:
    """Return the figures of requests that took so many seconds together, 0 if there are none.

    `objectives` are limits in milliseconds; request_goodput is None without any.
    """
    good = [trace for trace in traces if not trace.error]
    num_input = sum(trace.input_len for trace in good)
    num_output = sum(trace.output_len for trace in good)
    num_kept = sum(meets(trace, objectives) for trace in good)
    per_second = 1 / seconds if seconds else 0.0
    peak_tokens, peak_requests = peaks(good)
    return {
        "duration": seconds,
        "completed": len(good),
        "failed": len(traces) - len(good),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(good) * per_second,
        "request_goodput": num_kept * per_second if objectives else None,
        "output_throughput": num_output * per_second,
        "total_token_throughput": (num_input + num_output) * per_second,
        **details_of(traces),
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
        # Of audio, which is not measured here.
        "rtfx": 0.0,
        **_spread("ttft", [trace.ttft for trace in good]),
        **_spread("tpot", [trace.tpot for trace in good if trace.output_len > 1]),
        **_spread("itl", [gap for trace in good for gap in trace.itl]),
        **_spread("e2el", [trace.latency for trace in good]),
    }


def details_of(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    """Return what is known of each request, in the order in which they ended."""
    return {
        "input_lens": [trace.input_len for trace in traces],
        "output_lens": [trace.output_len for trace in traces],
        "ttfts": [trace.ttft for trace in traces],
        "itls": [trace.itl for trace in traces],
        "latencies": [trace.latency for trace in traces],
        "start_times": [trace.start for trace in traces],
        "queue_times": [trace.queued for trace in traces],
        "generated_texts": [trace.text for trace in traces],
        "errors": [trace.error for trace in traces],
    }


def meets(trace: Trace, objectives: Mapping[str, float]) -> bool:
    """Say whether a request kept all limits; one of a single token keeps any TPOT."""
    took = {"ttft": trace.ttft, "tpot": trace.tpot, "e2el": trace.latency}
    return all(1000 * took[name] <= limit for name, limit in objectives.items())


def peaks(good: Sequence[Trace]) -> tuple[float, int]:
    """Return the most tokens in one second, and the most requests that one second saw.

    Seconds are counted from the first request; a request counts in every second that it touches.
    """
    if not good:
        return 0.0, 0
    first = min(trace.start for trace in good)
    tokens: Counter[int] = Counter()
    requests: Counter[int] = Counter()
    for trace in good:
        began = trace.start - first
        times = began + trace.ttft + np.cumsum([0.0, *trace.itl])
        tokens.update(times.astype(int).tolist())
        requests.update(range(int(began), int(began + trace.latency) + 1))
    return float(max(tokens.values())), max(requests.values())


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return mean, median, deviation and percentiles in milliseconds; zeros if there are none."""
    found = 1000 * np.asarray(values if len(values) else [0.0])
    percentiles = np.percentile(found, PERCENTILES).tolist()
    return {
        f"mean_{name}_ms": float(np.mean(found)),
        f"median_{name}_ms": float(np.median(found)),
        f"std_{name}_ms": float(np.std(found)),
        **{f"p{p}_{name}_ms": v for p, v in zip(PERCENTILES, percentiles, strict=True)},
    }


def reasons(errors: Sequence[str], most: int = 3) -> list[str]:
    """Return the commonest reasons of failures, each with its count."""
    counts = Counter(error for error in errors if error)
    return [f"{count} × {error}" for error, count in counts.most_common(most)]
