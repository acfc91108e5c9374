"""The sections of a report, from the record that `--json` writes: nothing is measured here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgate_serve.bench.comparison import DENSE, PRUNED, noise_lines, speedup_rows
from sgate_serve.bench.explain.attribution import ALL_KINDS
from sgate_serve.bench.explain.sentences import MODELS
from sgate_serve.bench.rounds import interruption_lines
from sgate_serve.bench.workload import is_decode
from sgate_serve.reports.pages.content import Bars, Curves, Part, Profile, Report, Section, Table
from sgate_serve.reports.pages.requests import load, offline

Record = Mapping[str, Any]
MS, GB = 1000, 1e9
PROFILED = (
    "each part's time is its shortest with the profiler on; speedups and rates are measured without"
)
MEDIANS = (
    "speedups are medians of the ratios of each round, rates medians over the rounds: beside other "
    "programs the ratio of two rates differs from the speedup"
)


def report_of(record: Record) -> Report:
    """Return the report of a record of any kind of `sgate bench`."""
    if "speedups" in record:
        title = f"{record['pruned']} against {record['dense']}"
        return Report(title, [*_comparison(record), _conditions(record)])
    if "models" in record:
        kind = record["workload"]["kind"]
        return Report(f"{kind} on {record['engine']}", [offline(record), _conditions(record)])
    return Report("a server under load", [load(record), _conditions(record)])


def _comparison(record: Record) -> Iterator[Section]:
    notices = [*interruption_lines(record, "rounds"), *noise_lines(record)]
    yield Section("Speed", [_speedups(record), *_quality(record), *notices])
    yield from _trade(record)
    if "explanation" in record:
        explanation = record["explanation"]
        yield Section("Why", [*explanation["sentences"][MODELS], PROFILED])
        yield from _attribution(explanation)
        yield from _widths(explanation["models"])
        yield _machine(explanation["machine"])


def _speedups(record: Record) -> Table:
    rows = [["phase", "speedup", "95% interval", "ideal", "efficiency", "A/A floor"]]
    for model, own in speedup_rows(record).items():
        before = "" if model == PRUNED else f"{model}: "
        rows += [[f"{before}{phase}", *cells] for phase, *cells in own]
    return Table(rows)


def _quality(record: Record) -> Iterator[Table]:
    """Yield the scores of both models on the data, if there was any."""
    if "quality" in record:
        rows = [["score", "model", "precision", "value", "95% interval"]]
        for model, evaluation in record["quality"].items():
            for name, score in evaluation["scores"].items():
                interval = f"{score['low']:.4g} to {score['high']:.4g}"
                cells = [model, evaluation["precision"], f"{score['value']:.4g}", interval]
                rows.append([f"{name} on {evaluation['data']}", *cells])
        yield Table(rows)


def _trade(record: Record) -> Iterator[Section]:
    """Yield throughput against the time between tokens, if several batches were decoded."""
    rates = record["tokens_per_second"]
    batches = {name: int(name.rpartition("_")[2]) for name in rates if is_decode(name)}
    if len(batches) < 2:
        return
    lines, rows = [], [["batch", "model", "ms per token", "tokens/s"]]
    for model in (DENSE, PRUNED, *record["beside"]):
        points = []
        for phase, batch in batches.items():
            rate = rates[phase][model]["median"]
            points.append((MS * batch / rate, rate, f"batch {batch}"))
            rows.append([str(batch), model, f"{points[-1][0]:.2f}", f"{rate:,.1f}"])
        lines.append((model, points))
    curve = Curves(lines, "ms between the tokens of a stream", "tokens/s")
    yield Section("Throughput and latency of decoding", [curve, Table(rows), MEDIANS])


def _attribution(explanation: Record) -> Iterator[Section]:
    phases = explanation["phases"]
    everything = [one["kinds"] for by_model in phases.values() for one in by_model.values()]
    # The same kinds in every picture, so that each keeps its colour.
    used = [kind for kind in ALL_KINDS if any(kind in kinds for kinds in everything)]
    for phase, by_model in phases.items():
        bars = [
            (model, [MS * one["kinds"].get(kind, 0.0) for kind in used])
            for model, one in by_model.items()
        ]
        rows = [["ms", *by_model]]
        rows += [[k, *(f"{own[i]:.2f}" for _, own in bars)] for i, k in enumerate(used)]
        parts = [Bars(used, bars, "ms"), Table(rows), *_by_layer(by_model)]
        yield Section(f"Where the time of {phase} goes", [*parts, *explanation["sentences"][phase]])


def _by_layer(by_model: Record) -> Iterator[Part]:
    """Yield the time of each layer, pruned before dense, if both have as many."""
    sums = {
        model: [MS * sum(layer.values()) for layer in one["layers"]]
        for model, one in by_model.items()
    }
    yield from _pairs(sums[PRUNED], sums[DENSE], "ms by layer")


def _pairs(after: Sequence[float], before: Sequence[float], unit: str) -> Iterator[Part]:
    """Yield a profile, unless the models differ in their number of layers."""
    if len(after) == len(before) > 0:
        yield Profile(list(zip(after, before, strict=True)), unit)


def _widths(models: Record) -> Iterator[Section]:
    dense, pruned = models[DENSE], models[PRUNED]
    for key, title, unit in (
        ("mlp_units", "MLP units by layer", "units"),
        ("kv_groups", "KV groups by layer", "groups"),
    ):
        text = f"{sum(pruned[key]):,} of {sum(dense[key]):,} left"
        yield Section(title, [*_pairs(pruned[key], dense[key], unit), text])


def _machine(machine: Record) -> Section:
    products = machine["operations_per_second"]
    rows = [
        ["what", "rate"],
        ["memory read", f"{machine['read_bytes_per_second'] / GB:.1f} GB/s"],
        ["memory copied (read and written)", f"{machine['copied_bytes_per_second'] / GB:.1f} GB/s"],
        *(
            [f"product of large matrices in {name}", f"{rate / GB:,.0f} G operations/s"]
            for name, rate in products.items()
        ),
    ]
    return Section("What this machine can do", [Table(rows)])


def _conditions(record: Record) -> Section:
    """Return the command, the machine, the versions and the workload."""
    hardware, flags = record["hardware"], record["hardware"]["cpu_flags"]
    rows = [
        ["what", "value"],
        *([["command", record["command"]]] if "command" in record else []),
        *([["commit", record["commit"]]] if record.get("commit") else []),
        *_engine_rows(record),
        ["CPU", f"{hardware['cpu']}, {hardware['cpus']} usable"],
        ["its instructions", ", ".join(flag for flag in flags if _is_telling(flag))],
        *([["GPUs", ", ".join(hardware["gpus"])]] if hardware["gpus"] else []),
        *([name, version] for name, version in record["versions"].items()),
        *([f"workload: {n}", str(v)] for n, v in record["workload"].items() if v or v == 0),
    ]
    return Section("Conditions", [Table(rows, is_text=True)])


def _engine_rows(record: Record) -> Iterator[list[str]]:
    """Yield the engine and the precision of each model, where models were loaded."""
    if "engine" in record:
        yield ["engine", record["engine"]]
    for model, precision in record.get("precisions", {}).items():
        yield [f"precision, {model}", precision]


def _is_telling(flag: str) -> bool:
    """Say whether a CPU flag decides how fast products are."""
    return flag.startswith(("amx", "avx2", "avx_vnni", "avx512_", "avx512f", "i8mm", "bf16", "sve"))
