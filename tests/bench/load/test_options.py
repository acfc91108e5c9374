"""Options of a load: their defaults, and what is refused by the name of its flag."""

import math
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.bench.load.options import LoadOptions
from sgate_serve.bench.load.run import LoadRun
from sgate_serve.errors import BenchError

RAMP: dict[str, Any] = {
    "ramp_up_strategy": "linear",
    "ramp_up_start_rps": 1.0,
    "ramp_up_end_rps": 3.0,
}


def test_defaults_depend_on_the_loop() -> None:
    def users(**given: Any) -> int | None:
        return LoadRun(["http://a"], LoadOptions(**given)).users

    assert (LoadOptions().rate, users()) == (None, 8)
    assert users(request_rate="4") is None
    assert users(**RAMP) is None
    assert users(request_rate="inf", max_concurrency=3) == 3
    assert LoadOptions(request_rate="inf").rate == math.inf


def test_the_rates_of_an_open_loop() -> None:
    assert LoadOptions(request_rate="4").rates(3) == [4.0] * 3
    assert LoadOptions(request_rate="4", duration=2.0).rates(None) == [4.0] * 8
    assert LoadOptions(request_rate="4", duration=2.0).rates(5) == [4.0] * 5
    assert LoadOptions(**RAMP).rates(3) == [1, 2, 3]
    # A third, half and the whole of a second; with --num-prompts the ramp takes its own time.
    assert LoadOptions(**RAMP, duration=1.9).rates(None) == [1, 2, 3]
    assert LoadOptions(**RAMP, duration=1.9).rates(5) == [1, 1.5, 2, 2.5, 3]


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
        (
            {"request_rate": "fast"},
            "--request-rate fast: give a number from 0.0001 to",
        ),
        ({"request_rate": "0"}, "--request-rate 0: give a number from 0.0001"),
        ({"request_rate": "nan"}, "--request-rate nan: give a number from 0.0001"),
        ({"request_rate": "inf", "duration": 1.0}, "--request-rate inf needs --num-prompts"),
        ({"dataset": Path("d"), "input_len": 4}, "--input-len is for random prompts; leave it out"),
        ({"dataset": Path("d"), "shared_prefix_len": 4}, "--shared-prefix-len is for random"),
        ({"sweep": True, "max_concurrency": 4}, "--sweep sets the concurrency; leave out --max-c"),
        ({"sweep": True, "request_rate": "4"}, "--sweep sets the .* leave out --request-rate"),
        ({**RAMP, "request_rate": "4"}, "--ramp-up-strategy sets the rate; leave out --request-r"),
        ({**RAMP, "sweep": True}, "--sweep sets the .* leave out --ramp-up-strategy"),
        (
            {**RAMP, "ramp_up_end_rps": None},
            "a ramp needs --ramp-up-strategy, .*; give --ramp-up-e",
        ),
        ({**RAMP, "ramp_up_end_rps": 1e9}, "--ramp-up-end-rps 1e.09: give at most 100,000"),
        ({**RAMP, "num_prompts": 9, "duration": 9.0}, "give --num-prompts or --duration, not both"),
        ({**RAMP, "duration": 0.5}, "--duration 0.5: the first request of the ramp is due"),
        ({"request_rate": "9e4", "duration": 9e4}, "would send more than 1,000,000 requests"),
        ({"ramp_up_start_rps": 1.0}, "a ramp needs .*; give --ramp-up-strategy"),
        ({**RAMP, "ramp_up_end_rps": 0.5}, "--ramp-up-end-rps 0.5: must be above"),
        ({"slo": ("tftt:200",)}, "--slo tftt:200: unknown; .*; did you mean ttft?"),
        ({"slo": ("ttft",)}, "--slo ttft: give milliseconds above 0, such as ttft:200"),
        ({"slo": ("ttft:inf",)}, "--slo ttft:inf: give milliseconds"),
        ({"slo": ("ttft:1", "ttft:2")}, "--slo ttft:2: ttft is given twice"),
    ],
)
def test_what_cannot_be_run_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        LoadOptions(**given)
