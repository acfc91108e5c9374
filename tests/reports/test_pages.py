"""Reports: pages that need no network and whose tags close, Markdown whose tables are tables."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sgate_serve.errors import SgateError
from sgate_serve.reports.pages import write_report
from sgate_serve.reports.pages.charts import bars, curves, profile
from sgate_serve.reports.pages.content import Bars, Curves, Profile
from tests.bench.test_explain import explanation

VOID = {"meta", "rect", "line", "circle", "polyline"}
SPEEDUP = {"ratio": 1.25, "ci": [1.2, 1.3], "ideal": 1.3, "efficiency": 0.96}
RATE = {"median": 100.0, "low": 90.0, "high": 110.0}
FLOOR = {"ratio": 1.0, "ci": [0.9, 1.1]}
RATES = dict.fromkeys(("dense", "pruned", "masked"), RATE)
CONDITIONS: Mapping[str, Any] = {
    "command": "sgate bench compare a b",
    "commit": "abc",
    "hardware": {"cpu": "A CPU", "cpus": 2, "cpu_flags": ["avx2", "fma"], "gpus": []},
    "versions": {"python": "3.11"},
}


class Tags(HTMLParser):
    """Follows tags, and collects the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} & {"src", "href"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> str:
    """Return the texts of a page whose tags are checked."""
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "http" not in page and "url(" not in page
    return " ".join(" ".join(tags.texts).split())


def comparison() -> dict[str, Any]:
    told = {"models": ["attention did not shrink"], "decode_batch_1": ["the head is 30%"]}
    own = explanation()
    for model in own["models"].values():
        model["precision"] = "fp32"
    own["machine"]["copied_bytes_per_second"] = 8e9
    phases = ("decode_batch_1", "decode_batch_8")
    return {
        **CONDITIONS,
        "dense": "<b>dense</b>",
        "pruned": "a|b",
        "engine": "onnx",
        "speedups": {"onnx": dict.fromkeys(phases, SPEEDUP)},
        "beside": {"masked": dict.fromkeys(phases, SPEEDUP)},
        "floor": dict.fromkeys(phases, FLOOR),
        "tokens_per_second": dict.fromkeys(phases, RATES),
        "workload": {"seed": 0, "rounds": 9},
        "explanation": own | {"sentences": told},
        "interrupted": True,
        "rounds": 1,
        "precisions": {"dense": "int8"},
        "quality": {
            "dense": {
                "data": "t.txt",
                "precision": "int8",
                "scores": {"perplexity": {"value": 12.5, "low": 12.0, "high": 13.0}},
            }
        },
    }


def offline(kind: str) -> dict[str, Any]:
    rates = {f"{name}_per_second": RATE for name in ("requests", "output_tokens", "total_tokens")}
    times = {"avg_latency": 0.5, "percentiles": {"50": 0.4, "90": 0.6, "99": 0.7}}
    figures = rates if kind == "throughput" else times
    return {
        **CONDITIONS,
        "engine": "onnx",
        "models": {"dense": figures, "pruned": figures | {"speedup": RATE}},
        "floor": {"speedup": RATE},
        "workload": {"kind": kind, "seed": 0},
    }


def server(users: int) -> dict[str, Any]:
    times = {
        f"{statistic}_{time}_ms": 5.0 * users
        for statistic in ("mean", "median", "std", "p90", "p99")
        for time in ("ttft", "tpot", "itl", "e2el")
    }
    return {
        **times,
        "request_throughput": 2.0,
        "request_goodput": None,
        "output_throughput": 64.0,
        "total_token_throughput": 128.0,
        "completed": 8,
        "failed": 1,
        "errors": ["", "no answer"],
        "duration": 2.0,
        "model_id": "a model",
        "request_rate": "inf",
        "timed_trace": False,
        "total_input_tokens": 100,
        "total_output_tokens": 50,
        "max_concurrency": users,
        "server": {"url": "127.0.0.1:8000", "prompts": "random"},
    }


def loads() -> list[dict[str, Any]]:
    common = {**CONDITIONS, "workload": {"seed": 0}, "interrupted": True}
    ratios = {"mean_ttft_ms": RATE}
    return [
        server(4) | common,
        {"servers": [server(4), server(8)], "ratios": ratios, **common},
        {"sweep": [server(1), server(2)], **common},
    ]


@pytest.mark.parametrize(
    "record", [comparison(), offline("throughput"), offline("latency"), *loads()]
)
def test_reports_of_every_record(tmp_path: Path, record: dict[str, Any]) -> None:
    write_report(record, tmp_path / "r.html")
    text = read((tmp_path / "r.html").read_text())
    assert "A CPU, 2 usable" in text and "avx2" in text and "sgate bench compare a b" in text
    write_report(record, tmp_path / "r.md")
    widths = 0
    for line in (tmp_path / "r.md").read_text().splitlines():
        if not line.startswith("|"):
            widths = 0
            continue
        columns = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert widths in (0, columns), line
        widths = columns


def test_a_comparison_has_its_figures_words_and_pictures(tmp_path: Path) -> None:
    write_report(comparison(), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    text = read(page)
    assert "<b>" not in page and "a|b against <b>dense</b>" in text
    for part in ("1.25x", "0.96", "masked: decode_batch_1", "12.5", "the head is 30%", "10.0 GB/s"):
        assert part in text
    # Throughput against latency, a phase's bars and layers, MLP units and KV groups by layer.
    assert page.count("<svg") == 5
    assert "interrupted after 1 of 9 rounds" in text and "precision, dense int8" in text
    assert "prefers-color-scheme: dark" in page


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SgateError, match=r"--report .*r.pdf: give a file name that ends in .html"):
        write_report(comparison(), tmp_path / "r.pdf")


def test_pictures_of_nothing_are_drawn() -> None:
    for picture in (
        bars(Bars([], [], "ms")),
        curves(Curves([], "x", "y")),
        profile(Profile([], "u")),
    ):
        assert picture.startswith("<svg") and "nan" not in picture


def test_bars_end_where_their_sum_does() -> None:
    picture = bars(Bars(["a", "b"], [("long", [1.0, 3.0]), ("short", [1.0, 1.0])], "ms"))
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="18.0"', picture)
    ends = [float(x) + float(width) for x, width in found]
    assert len(found) == 4 and ends[1] - 190 == pytest.approx(2 * (ends[3] - 190), abs=0.3)
