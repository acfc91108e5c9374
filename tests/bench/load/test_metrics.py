"""Figures from traces that are made by hand."""

import math

import numpy as np
import pytest

from sgate_serve.bench.load.metrics import metrics_of, peaks, reasons
from sgate_serve.bench.load.trace import Trace

# The keys of `vllm bench serve --save-result --save-detailed` 0.32 that are measured.
VLLM_KEYS = (
    "duration completed failed total_input_tokens total_output_tokens request_throughput "
    "request_goodput output_throughput total_token_throughput input_lens output_lens ttfts itls "
    "latencies start_times queue_times generated_texts errors max_output_tokens_per_s "
    "max_concurrent_requests rtfx"
)


def trace(start: float, ttft: float, itl: list[float], num_input: int = 10) -> Trace:
    return Trace(start, num_input, len(itl) + 1, ttft, itl, ttft + sum(itl), text="x")


FAST = trace(100.0, 0.1, [0.1, 0.3])
SLOW = trace(100.5, 1.0, [0.5, 0.5, 0.5])
SHORT = trace(103.0, 0.2, [], num_input=1)
FAILED = Trace(100.0, 9, error="HTTP 503: busy")
ALL = (FAST, FAILED, SLOW, SHORT)


def test_throughput_and_counts() -> None:
    found = metrics_of(ALL, 4.0, {})
    assert (found["completed"], found["failed"]) == (3, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (21, 8)
    assert found["request_throughput"] == 0.75
    assert found["output_throughput"] == 2.0
    assert found["total_token_throughput"] == pytest.approx(29 / 4)
    assert found["request_goodput"] is None


def test_times_in_milliseconds() -> None:
    found = metrics_of(ALL, 4.0, {})
    assert found["median_ttft_ms"] == pytest.approx(200)
    assert found["mean_ttft_ms"] == pytest.approx(1300 / 3)
    assert found["p90_ttft_ms"] == pytest.approx(np.percentile([100, 200, 1000], 90))
    # Without the request of one token.
    assert found["mean_tpot_ms"] == pytest.approx((200 + 500) / 2)
    # Of all gaps together.
    assert found["median_itl_ms"] == pytest.approx(500)
    assert found["std_itl_ms"] == pytest.approx(1000 * np.std([0.1, 0.3, 0.5, 0.5, 0.5]))
    assert found["p99_e2el_ms"] == pytest.approx(np.percentile([500, 2500, 200], 99))


@pytest.mark.parametrize(
    ("objectives", "num"),
    [
        ({"ttft": 1000.0}, 3),
        ({"ttft": 150.0}, 1),
        ({"tpot": 250.0}, 2),  # the request of one token keeps any TPOT
        ({"tpot": 250.0, "e2el": 300.0}, 1),
        ({"e2el": 1.0}, 0),
    ],
)
def test_goodput_counts_requests_that_keep_all_limits(
    objectives: dict[str, float], num: int
) -> None:
    assert metrics_of(ALL, 4.0, objectives)["request_goodput"] == num / 4


def test_details_are_vllms_and_in_order() -> None:
    found = metrics_of(ALL, 4.0, {})
    times = [f"{each}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for each in
             ("mean", "median", "std", "p90", "p99")]  # fmt: skip
    assert list(found) == [*VLLM_KEYS.split(), *times]
    assert found["output_lens"] == [3, 0, 4, 1]
    assert found["errors"] == ["", "HTTP 503: busy", "", ""]
    assert found["itls"] == [FAST.itl, [], SLOW.itl, []]


def test_peaks_count_seconds_from_the_first_request() -> None:
    # Second 0: three tokens of FAST; 1: the first of SLOW; 2 and 3: its others, and SHORT.
    assert peaks([FAST, SLOW, SHORT]) == (3.0, 2)
    assert peaks([]) == (0.0, 0)


def test_without_an_answer_figures_are_zero() -> None:
    for found in (metrics_of([FAILED], 2.0, {"ttft": 1.0}), metrics_of([], 0.0, {"ttft": 1.0})):
        assert found["completed"] == 0 and found["request_goodput"] == 0
        numbers = [value for value in found.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers)


def test_the_commonest_reasons_come_first() -> None:
    errors = ["a", "", "b", "b", "c", "d", "d", "d"]
    assert reasons(errors) == ["3 × d", "2 × b", "1 × a"]
