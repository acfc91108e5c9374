"""The speed and quality tables: values and rows computed from records."""

from typing import Any

import pytest

from benchmarks.engine_tables import engine_rows, engine_summary_rows, speed_over
from benchmarks.quality_cells import summary
from benchmarks.quality_tables import (
    balance_sentence,
    equality_sentence,
    quality_rows,
)
from benchmarks.speed_tables import (
    choice_rows,
    footprint_sentence,
    streaming_rows,
)


def phase(**seconds: list[float]) -> dict[str, Any]:
    return {
        name: {"seconds": times, "tokens_per_second": 10 / times[0]}
        for name, times in seconds.items()
    }


def test_speeds_are_medians_over_rounds() -> None:
    own = phase(ours=[1.0, 1.0, 2.0, 2.0, 1.0, 1.0], other=[2.0, 2.0, 3.0, 3.0, 4.0, 4.0])
    assert speed_over(own, "ours", "other") == pytest.approx(2.0)


def test_engines_are_compared_at_the_same_width() -> None:
    times = {"ours int4 dense": 1.0, "llama.cpp Q8_0": 4.0, "vLLM W8A8": 1.0}
    times |= {"ours in vLLM W8A8": 0.8, "ours int8 dense": 2.0, "ours int8 p30": 1.4}
    one = phase(**{name: [value, value] for name, value in times.items()})
    record = {
        "options": {"hidden": 896, "layers": 24},
        "figures": {"p30": {"removed": 0.3}},
        "results": {"int8": {"decode_batch_8": one, "prefill_512": one}},
    }
    header, _, *rows = engine_rows(record)
    assert header == "| hidden 896 × 24 layers, tokens/s | batch 8 | prefill 512 |"
    assert rows == [
        "| llama.cpp Q8_0 | 2 (0.50×) | 2 (0.50×) |",
        "| vLLM W8A8 | 10 (2.00×) | 10 (2.00×) |",
        "| 30% removed, by our plugin | 12 (2.50×) | 12 (2.50×) |",
        "| ours int8 dense | 5 (1.00×) | 5 (1.00×) |",
        "| 30% removed | 7 (1.43×) | 7 (1.43×) |",
    ]
    _, _, *rows = engine_summary_rows(record)
    assert rows == [
        "| llama.cpp Q8_0 (int8 here) | 2.00× → 2.86× | 2.00× → 2.86× |",
        "| vLLM W8A8 (int8 here) | 0.50× → 0.71× | 0.50× → 0.71× |",
        "| vLLM W8A8 (our plugin in it) | → 1.25× | → 1.25× |",
    ]


def test_requests_take_the_time_of_their_tokens() -> None:
    def speeds(decode: float, prefill: float) -> dict[str, Any]:
        names = {"decode_batch_1": decode, "decode_batch_8": 1.0, "prefill": prefill}
        interval = {"ci": [1.0, 1.0], "efficiency": 1.0}
        return {name: {"ratio": ratio, **interval} for name, ratio in names.items()}

    # int4: 1 s for a generated token and 0.25 s for one of a prompt.
    rates = {"decode_batch_1": {"dense": {"median": 1.0}}, "prefill": {"dense": {"median": 4.0}}}
    forms = {"blocks": speeds(0.8, 1.0), "rows": speeds(0.5, 2.0)}
    sizes = {"int4": 2e6, "blocks": 4e6, "rows": 3e6}
    speed = {"speedups": forms, "tokens_per_second": rates, "floor": speeds(1.1, 1.0)}
    _, _, again, blocks, rows, both = choice_rows({"speed": speed, "bytes": sizes})
    assert again.startswith("| int4 again | 2 | 1.10×")
    assert blocks.endswith("| 0.89× | 0.95× |")  # 2 / 2.25 and 5 / 5.25
    assert rows.endswith("| 0.80× | 1.25× |")  # 2 / 2.5 and 5 / 4
    assert both.startswith("| both, by turns (computed) | up to 5 |")
    assert both.endswith("| 1.33× | 1.67× |")  # 2 / 1.5 and 5 / 3


def cell(name: str, seed: int, value: float, **more: Any) -> dict[str, Any]:
    figures = {f"removed_{kind}": more.get("removed", 0.0) for kind in FIGURES}
    scores = {"recovered": {"accuracy": {"value": value, "standard_error": 0.02}}}
    phases = {"recovery": {"trained_parameters": 1234}}
    own = {"cell": name, "seed": seed, "scores": scores, "phases": phases, "removed": 0.0}
    return own | figures | more


FIGURES = ("naive", "compiled", "executed")


def test_quality_is_the_mean_of_seeds_against_dense_of_the_same_seed() -> None:
    speed = {"speedups": {"onnx": {"batch_1": {"ratio": 1.3, "efficiency": 0.9}}}}
    same = {"masked": {"accuracy": 0.5}, "onnx": {"accuracy": 0.5}}
    cells = [
        cell("gates 30%", 0, 0.5, removed=0.3, speed=speed, converted=same),
        cell("gates 30%", 1, 0.6, removed=0.3),
        cell("dense", 0, 0.52),
        cell("dense", 1, 0.6),
        cell("late 30%", 2, 0.4, removed=0.3),
    ]
    record: dict[str, Any] = {"cells": cells, "summary": summary(cells, "accuracy")}
    assert record["summary"]["gates 30%"]["standard_error"] == pytest.approx(0.05)
    assert record["summary"]["gates 30%"]["against_dense"] == pytest.approx(-0.01)
    assert record["summary"]["late 30%"] == {
        "accuracy": 0.4,
        "standard_error": 0.02,
        "against_dense": None,
        "against_dense_standard_error": None,
        "seeds": [2],
    }
    rows = list(quality_rows(record, "accuracy"))
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| dense", "| gates 30%", "| late 30%"]
    shown = "| gates 30% | 2 | 55.0 ± 5.0% | -1.0 ± 1.0 points | 30.0% / 30.0% / 30.0% | 1,234 "
    assert rows[3].startswith(shown) and rows[3].endswith("| 1.30× (0.90) |")
    assert equality_sentence(record).endswith("by at most 0 on onnx (1 scored).")


def test_balances_are_shown_phase_by_phase() -> None:
    joint, even = ({"batch_1": {"ratio": r, "ci": [r - 0.1, r + 0.1]}} for r in (1.4, 1.5))
    record = {
        "speedups": {"onnx": joint},
        "beside": {"even": even},
        "workload": {"rounds": 9},
    }
    assert balance_sentence(record) == (
        "Over dense, 9 rounds: speed at batch 1 joint 1.40× (1.30 to 1.50), "
        "even 1.50× (1.40 to 1.60)."
    )


CONVERSIONS = ("convert_with_gates", "convert_by_scan", "plan_70b")


def test_conversion_is_shown_relative_to_copying() -> None:
    speed = {"median": 0.5, "low": 0.25, "high": 0.75}
    runs = {name: {"seconds": {"median": 4.0}, "peak_rss_bytes": 5e8} for name in CONVERSIONS}
    record = {
        "checkpoint": {"bytes": 3 * 2**30},
        "options": {"rounds": 7},
        "speed_of_copy": {"convert_with_gates": speed, "convert_by_scan": speed},
        "results": {"copy": {"seconds": {"median": 2.0}}, **runs},
    }
    header, _, copy, with_gates, _, plan = streaming_rows(record)
    assert header.startswith("| 3.0 GiB of bf16 weights, 7 rounds | seconds |")
    assert copy == "| copying the files | 2.0 |  |  |"
    assert with_gates.endswith(", with gates | 4.0 | 0.50× (0.25 to 0.75) | 500 MB |")
    assert plan.endswith(" | 4.0 |  | 500 MB |")


def test_footprint_links_its_record() -> None:
    medians = {"first_token": 0.84, "rss_bytes": 1.2e8}
    record = {"installation": {"installed_bytes": 3e8}, "medians": medians}
    shown = footprint_sentence(record)
    assert shown.startswith("That is 300 MB installed, 0.8 s from ") and "120 MB" in shown
    assert "](../benchmarks/results/footprint.json)" in shown
