"""Records and tables of loads. A server's record has the names of `vllm bench serve --save-result`.

Ours are added: command, seed, hardware, versions, and what the server was found to be.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sgate_serve.bench.load.metrics import metrics_of, reasons
from sgate_serve.bench.load.options import RAMP, LoadOptions
from sgate_serve.bench.load.run import LoadRun
from sgate_serve.bench.load.turn import Turn
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.bench.text_table import table_lines
from sgate_serve.environment import hardware, library_versions

TIMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
RATES = {
    "request_throughput": "requests/s",
    "request_goodput": "requests/s that meet --slo",
    "output_throughput": "output tokens/s",
    "total_token_throughput": "total tokens/s",
}
STATISTICS = ("mean", "median", "std", "p90", "p99")
# The figures of which two servers have a ratio.
COMPARED = (*RATES, *(f"{each}_{name}_ms" for name in TIMES for each in STATISTICS))


def record_of(
    runs: Sequence[LoadRun], command: Sequence[str], *, is_sweep: bool, is_interrupted: bool
) -> dict[str, Any]:
    """Return the record of a server's run, of two servers' with ratios, or of a sweep."""
    first = runs[0]
    common = _conditions(first, command, is_interrupted=is_interrupted)
    if is_sweep:
        return {"sweep": [server_record(run, 0) for run in runs], **common}
    if not first.is_comparison:
        return {**server_record(first, 0), **common}
    servers = [server_record(first, index) for index in range(len(first.targets))]
    return {"servers": servers, "ratios": ratios(first), **common}


def _conditions(run: LoadRun, command: Sequence[str], *, is_interrupted: bool) -> dict[str, Any]:
    import httpx

    options = asdict(run.options)
    options["dataset"] = options["dataset"] and str(options["dataset"])
    return {
        "command": shlex.join(command),
        "seed": run.options.seed,
        "interrupted": is_interrupted,
        "workload": options,
        "hardware": hardware(),
        "versions": library_versions() | {"httpx": httpx.__version__},
    }


def server_record(run: LoadRun, index: int) -> dict[str, Any]:
    """Return one server's record; turns of a comparison count as one load without the gaps."""
    target, options = run.targets[index], run.options
    backend = "openai-chat" if target.path.endswith("/chat/completions") else "openai"
    rate = options.rate
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": target.model,
        "tokenizer_id": target.model,
        "num_prompts": sum(len(turn.traces) for turn in run.turns[index]),
        "request_rate": "inf" if rate is None or math.isinf(rate) else rate,
        "burstiness": options.burstiness or 1.0,
        "max_concurrency": run.users,
        **_ramp(options),
        "timed_trace": run.is_trace,
        **_figures(run.turns[index], options.objectives),
        "server": target.to_json(),
    }


def _ramp(options: LoadOptions) -> dict[str, Any]:
    """Return what `vllm bench serve` records of a ramp, and nothing without one."""
    return {} if options.ramp is None else {name: getattr(options, name) for name in RAMP}


def _figures(turns: Sequence[Turn], objectives: Mapping[str, float]) -> dict[str, Any]:
    traces = [trace for turn in turns for trace in turn.traces]
    return metrics_of(traces, sum(turn.seconds for turn in turns), objectives)


def ratios(run: LoadRun) -> dict[str, dict[str, float]]:
    """Return how many times the second server's figure the first one's is, from whole rounds.

    A figure that is 0 for either in some round, such as a deviation, has no ratio.
    """
    rounds = min(sum(turn.is_whole for turn in turns) // 2 for turns in run.turns)
    objectives = run.options.objectives
    figures = [
        [_figures(turns[2 * number : 2 * number + 2], objectives) for number in range(rounds)]
        for turns in run.turns
    ]
    found: dict[str, dict[str, float]] = {}
    for name in COMPARED:
        pairs = [(a[name], b[name]) for a, b in zip(*figures, strict=True)]
        if pairs and all(a and b for a, b in pairs):
            values = [a / b for a, b in pairs]
            found[name] = asdict(median_with_interval(values, run.options.seed))
    return found


def record_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a run's record as a table."""
    if record["interrupted"]:
        yield "interrupted: these are the requests that had ended"
    if "sweep" in record:
        yield from _sweep_lines(record["sweep"])
    elif "servers" in record:
        yield from _comparison_lines(record["servers"], record["ratios"])
    else:
        yield from _server_lines(record)


def _server_lines(record: Mapping[str, Any]) -> Iterator[str]:
    yield heading(record)
    yield from _remarks(record)
    if not record["completed"]:
        yield "no request was answered, so there are no times"
        return
    yield ""
    for name, label in RATES.items():
        if record[name] is not None:
            yield f"{label:<28} {record[name]:>10,.2f}"
    yield f"{'most requests in a second':<28} {record['max_concurrent_requests']:>10,}"
    yield ""
    rows = [["ms", *STATISTICS]]
    for name, label in TIMES.items():
        rows.append([label, *(f"{record[f'{each}_{name}_ms']:,.1f}" for each in STATISTICS)])
    yield from table_lines(rows)


def heading(record: Mapping[str, Any]) -> str:
    """Return one line that says what was done to a server."""
    done, failed = record["completed"], record["failed"]
    server = record["server"]
    return (
        f"{server['url']} ({record['model_id']}): {done:,} requests in {record['duration']:.1f} s, "
        f"{failed:,} failed; {load_of(record)}; {server['prompts']}, "
        f"{record['total_input_tokens']:,} tokens in and {record['total_output_tokens']:,} out"
    )


def load_of(record: Mapping[str, Any]) -> str:
    users = record["max_concurrency"]
    most = "" if users is None else f", at most {users} at a time"
    if "ramp_up_strategy" in record:
        strategy, start, end = (record[name] for name in RAMP)
        return f"{start:g} to {end:g} requests/s, {strategy}{most}"
    if record["timed_trace"]:
        return f"at the times of the dataset{most}"
    if record["request_rate"] == "inf":
        return "all at once" if users is None else f"{users} at a time"
    return f"{record['request_rate']:g} requests/s{most}"


def _remarks(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"failed: {reason}" for reason in reasons(record["errors"]))
    server = record["server"]
    if "ignore_eos" not in server["fields"]:
        yield f"{server['url']} takes no ignore_eos, so answers may be shorter than asked for"
    if "stream_options" not in server["fields"]:
        yield f"{server['url']} counts no tokens, so those of answers are its events"


def _comparison_lines(
    servers: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    for letter, record in zip("AB", servers, strict=True):
        yield f"{letter}: {heading(record)}"
        yield from _remarks(record)
    yield ""
    labels = RATES | {
        f"{each}_{name}_ms": f"{each} {label} ms"
        for name, label in TIMES.items()
        for each in STATISTICS
        if each != "std"
    }
    rows = [["", "A", "B", "A / B", "95% interval"]]
    for name, label in labels.items():
        values = [record[name] for record in servers]
        if None in values:
            continue
        row = [label, *(f"{value:,.2f}" for value in values)]
        if name in found:
            ratio = found[name]
            row += [f"{ratio['median']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}"]
        rows.append(row)
    yield from table_lines(rows)


def _sweep_lines(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    server = records[0]["server"]
    yield f"{server['url']} ({records[0]['model_id']}), {server['prompts']}"
    for record in records:
        yield from _remarks(record)
    columns = ["requests/s", "output tokens/s", "median TTFT ms", "median TPOT ms", "p99 ITL ms"]
    rows = [["at a time", *columns]]
    for record in records:
        names = ("request_throughput", "output_throughput")
        times = ("median_ttft_ms", "median_tpot_ms", "p99_itl_ms")
        cells = [*(f"{record[n]:,.2f}" for n in names), *(f"{record[n]:,.1f}" for n in times)]
        rows.append([str(record["max_concurrency"]), *cells])
    yield from table_lines(rows)
    best = max(records, key=lambda record: record["output_throughput"])
    yield (
        f"most output tokens/s: {best['output_throughput']:,.2f} with --max-concurrency "
        f"{best['max_concurrency']}"
    )
