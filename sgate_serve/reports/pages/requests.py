"""The sections of reports on whole requests: batches without a server, and servers under load."""

from collections.abc import Mapping, Sequence
from typing import Any

from sgate_serve.bench.load.metrics import reasons
from sgate_serve.bench.load.report import COMPARED, RATES, TIMES, heading
from sgate_serve.bench.rounds import interruption_lines
from sgate_serve.reports.pages.content import Bars, Curves, Section, Table

Record = Mapping[str, Any]
# The figures of `sgate bench throughput` and `latency`, by the titles of their columns.
THROUGHPUT = {
    "requests/s": "requests_per_second",
    "output tokens/s": "output_tokens_per_second",
    "total tokens/s": "total_tokens_per_second",
}
LATENCY = {"median s": "50", "p90 s": "90", "p99 s": "99"}


def offline(record: Record) -> Section:
    """Return the section of a throughput or latency record."""
    is_throughput = record["workload"]["kind"] == "throughput"
    titles = [*THROUGHPUT] if is_throughput else ["mean s", *LATENCY]
    rows, bars = [["model", *titles, "speedup"]], []
    for model, figures in record["models"].items():
        if is_throughput:
            values = [figures[name]["median"] for name in THROUGHPUT.values()]
        else:
            parts = figures["percentiles"]
            values = [figures["avg_latency"], *(parts[name] for name in LATENCY.values())]
        rows.append([model, *(f"{value:,.3f}" for value in values), _speedup(figures)])
        bars.append((model, [values[1]]))
    if record["floor"] is not None:
        blank = [""] * len(titles)
        rows.append([f"{next(iter(record['models']))} again", *blank, _speedup(record["floor"])])
    chart = Bars([titles[1]], bars, titles[1].rpartition(" ")[2])
    return Section("Results", [chart, Table(rows), *interruption_lines(record, "num_iters")])


def _speedup(figures: Record) -> str:
    """Return a speedup over the first model with its interval; nothing for that model itself."""
    if "speedup" not in figures:
        return ""
    found = figures["speedup"]
    return f"{found['median']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"


def load(record: Record) -> Section:
    """Return the section of a record of one server, of two, or of a sweep."""
    if "sweep" in record:
        return _sweep(record)
    servers, ratios = record.get("servers", [record]), record.get("ratios", {})
    rows = [["", *(server["server"]["url"] for server in servers), *(["ratio"] if ratios else [])]]
    for name in COMPARED:
        values = [server[name] for server in servers if server["completed"]]
        if None in values or len(values) < len(servers):
            continue
        cells = [f"{value:,.2f}" for value in values]
        if name in ratios:
            found = ratios[name]
            cells.append(f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})")
        rows.append([_title(name), *cells])
    counts = [*_interruption(record), *map(heading, servers)]
    failures = [f"failed: {why}" for server in servers for why in reasons(server["errors"])]
    return Section("Results", [Table(_filled(rows)), *counts, *failures])


def _filled(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows of one length; those without a ratio end early."""
    return [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]


def _title(name: str) -> str:
    """Return `mean TTFT ms` for `mean_ttft_ms`."""
    if name in RATES:
        return RATES[name]
    statistic, time, unit = name.split("_")
    return f"{statistic} {TIMES[time]} {unit}"


def _interruption(record: Record) -> list[str]:
    return ["interrupted: these are the requests that had ended"] if record["interrupted"] else []


def _sweep(record: Record) -> Section:
    records = record["sweep"]
    rows = [["at a time", "output tokens/s", "median TTFT ms", "median TPOT ms", "p99 ITL ms"]]
    points = []
    for one in records:
        times = [one[name] for name in ("median_ttft_ms", "median_tpot_ms", "p99_itl_ms")]
        users, rate = str(one["max_concurrency"]), one["output_throughput"]
        rows.append([users, f"{rate:,.2f}", *(f"{time:,.1f}" for time in times)])
        points.append((one["median_tpot_ms"], rate, users))
    curve = Curves([("requests at a time", points)], "median TPOT in ms", "output tokens/s")
    return Section("Throughput and latency", [curve, Table(rows), *_interruption(record)])
