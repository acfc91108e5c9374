"""Options of a load: their defaults, and what is refused by the name of its flag."""

import math
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.errors import BenchError


def test_defaults_depend_on_the_loop() -> None:
    assert (LoadOptions().rate, LoadOptions().users) == (None, 8)
    assert LoadOptions(request_rate="4").users is None
    assert LoadOptions(request_rate="inf", max_concurrency=3).users == 3
    assert LoadOptions(request_rate="inf").rate == math.inf


def test_the_number_of_requests() -> None:
    assert LoadOptions().num_requests(None, is_turn=False) == 64
    assert LoadOptions().num_requests(None, is_turn=True) == 16
    assert LoadOptions().num_requests(5, is_turn=False) == 5
    assert LoadOptions(num_prompts=200).num_requests(5, is_turn=True) == 200
    assert LoadOptions(duration=2.0).num_requests(5, is_turn=False) is None


def test_objectives_are_limits_in_milliseconds() -> None:
    assert LoadOptions(slo=("ttft:200", "e2el:1.5")).objectives == {"ttft": 200, "e2el": 1.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_prompts": 0}, "--num-prompts 0: must be at least 1"),
        ({"burstiness": 0.0, "request_rate": "1"}, "--burstiness 0: must be above 0"),
        ({"duration": -1.0}, "--duration -1: must be above 0"),
        ({"timeout": 0.0}, "--timeout 0: must be above 0"),
        ({"burstiness": 2.0}, "--burstiness shapes the arrivals of --request-rate; give a rate"),
        ({"burstiness": 2.0, "request_rate": "inf"}, "--burstiness shapes"),
        ({"request_rate": "fast"}, "--request-rate fast: give a number above 0, or inf"),
        ({"request_rate": "0"}, "--request-rate 0: give a number above 0"),
        ({"request_rate": "nan"}, "--request-rate nan: give a number above 0"),
        ({"request_rate": "inf", "duration": 1.0}, "--request-rate inf needs --num-prompts"),
        ({"dataset": Path("d"), "input_len": 4}, "--input-len is for random prompts; leave it out"),
        ({"dataset": Path("d"), "shared_prefix_len": 4}, "--shared-prefix-len is for random"),
        ({"sweep": True, "max_concurrency": 4}, "--sweep sets the concurrency; leave out --max-c"),
        ({"sweep": True, "request_rate": "4"}, "--sweep sets the .* leave out --request-rate"),
        ({"slo": ("tftt:200",)}, "--slo tftt:200: unknown; .*; did you mean ttft?"),
        ({"slo": ("ttft",)}, "--slo ttft: give milliseconds above 0, such as ttft:200"),
        ({"slo": ("ttft:inf",)}, "--slo ttft:inf: give milliseconds"),
        ({"slo": ("ttft:1", "ttft:2")}, "--slo ttft:2: ttft is given twice"),
    ],
)
def test_what_cannot_be_run_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        LoadOptions(**given)
