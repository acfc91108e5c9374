"""The tables of docs/speed.md, made from their records."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.engine_tables import phase_name
from sgate_serve.gates.keys import EXPERTS

PHASES = {"decode_batch_1": "decode, batch 1", "decode_batch_8": "batch 8", "prefill": "prefill"}
LONE, PROMPT = "decode_batch_1", "prefill"
# Prompt tokens for each generated one of the requests that are shown.
PROMPT_SHARES = (4, 16)
ATTENTION = "GroupQueryAttention"
# The text on which choices of the int4 graph are compared.
INT4_TEXT = "python_docs"
ENCODERS = {
    "p20": "20% of the heads and MLP units closed",
    "p30": "30%",
    "p40": "40%",
    "torch_export": "dense, as `torch.onnx.export` writes it",
    "torch_eager": "dense, in torch itself",
}
MASKS = {
    "coupled": "coupled mask of the same removed fraction",
    "row_col_price_0": "row-col, all of it cut out (`--index-price 0`)",
    "row_col_default_price": "row-col, cut out where that pays (`--target-engine onnx`)",
    "row_col_nothing_lowered": "row-col, sliced only",
}
STREAMING_RUNS = {
    "copy": "copying the files",
    "convert_with_gates": "`sgate convert`, with gates",
    "convert_by_scan": "`sgate convert`, by scan",
    "plan_70b": "`sgate plan` with gates, on the headers of a 70B model",
}


def encoder_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of encoders: speed over our dense model, and efficiency in brackets."""
    phases = list(record["floor"])
    texts = [f"{phase.rpartition('_')[2]} at once" for phase in phases]
    yield f"| measured on ONNX Runtime, CPU, fp32 | removed | {' | '.join(texts)} | ideal |"
    yield "|---" * (len(phases) + 3) + "|"
    for key, name in ENCODERS.items():
        figures, own = record["figures"].get(key), record["speedups"][key]
        removed = "none" if figures is None else f"{figures['removed']:.1%}"
        cells = [speedup_cell(record, own[phase], phase) for phase in phases]
        ideal = own[phases[0]]["ideal"]
        yield f"| {name} | {removed} | {' | '.join(cells)} | {ideal:.2f}× |"
    floors = " | ".join(f"{record['floor'][phase]['median']:.2f}×" for phase in phases)
    yield f"| dense / dense | none | {floors} | 1.00× |"


def speedup_cell(record: Mapping[str, Any], speedup: Mapping[str, float], phase: str) -> str:
    """Return a speedup over the mean of both copies of the dense model, and its efficiency."""
    share = 1.0
    if "base" not in record:
        # Older speedups are over the first copy, whose time is `ratio` of the second one's.
        floor = record["floor"][phase]
        share = (1 + 1 / floor.get("ratio", floor.get("median"))) / 2
    return f"{speedup['ratio'] * share:.2f}× ({speedup['efficiency'] * share:.2f})"


def interval_cell(speedup: Mapping[str, Any]) -> str:
    """Return a speedup with its 95% interval."""
    low, high = speedup["ci"]
    return f"{speedup['ratio']:.2f}× ({low:.2f} to {high:.2f})"


def spread_cell(speedup: Mapping[str, float]) -> str:
    """Return a median with its 95% interval."""
    return f"{speedup['median']:.2f}× ({speedup['low']:.2f} to {speedup['high']:.2f})"


def precision_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the perplexity and the speed over fp32 of each precision."""
    speedups = record["speed"]["speedups"]
    yield f"| precision | perplexity | {' | '.join(PHASES.values())} |"
    yield "|---" * (len(PHASES) + 2) + "|"
    for name, perplexity in record["perplexity"]["graphs"].items():
        own = speedups.get(name)
        cells = ["" if own is None else f"{own[phase]['ratio']:.2f}×" for phase in PHASES]
        yield f"| {name} | {perplexity:.2f} | {' | '.join(cells)} |"


def quantizer_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the perplexity of 4-bit weights by quantizer and block size."""
    alone = record["perplexity"]["weights_alone"]
    sizes = list(next(iter(alone.values())))
    yield f"| 4-bit weights, block of | {' | '.join(sizes)} |"
    yield "|---" * (len(sizes) + 1) + "|"
    for name, by_block in alone.items():
        yield f"| {name} | {' | '.join(f'{by_block[size]:.2f}' for size in sizes)} |"


def int4_rows(*records: Mapping[str, Any]) -> Iterator[str]:
    """Yield size and perplexity, over fp32's, of each choice of the int4 graph, model by model."""
    yield "| graph |" + " dense, MB | perplexity | 30% removed, MB | perplexity |"
    yield "|---" * (2 * len(records) + 1) + "|"
    for name in records[0]["found"]:
        cells = []
        for record in records:
            found, exact = (record["found"][one] for one in (name, "fp32"))
            value, reference = (one["perplexity"][INT4_TEXT] for one in (found, exact))
            cells += [f"{found['bytes'] / 1e6:.0f}", f"{value:.2f} ({value / reference - 1:+.1%})"]
        yield f"| {name} | {' | '.join(cells)} |"


def int8_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the perplexity over fp32's on each text, and the speed, of each form of products."""
    exact, speeds = record["perplexity"]["fp32"], record["speed"]["speedups"]
    yield f"| products | {' | '.join(exact)} | {' | '.join(PHASES.values())} |"
    yield "|---" * (len(exact) + len(PHASES) + 1) + "|"
    for form, found in record["perplexity"].items():
        cells = [f"{value:.2f} ({value / exact[text] - 1:+.1%})" for text, value in found.items()]
        own = speeds.get(form)
        cells += ["" if own is None else interval_cell(own[phase]) for phase in PHASES]
        yield f"| {form} | {' | '.join(cells)} |"
    again = (interval_cell(floor) for floor in record["speed"]["floor"].values())
    yield f"| blocks of 64 again |{' |' * len(exact)} {' | '.join(again)} |"


def operator_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield each operator's share of a call and, of products, the multiply-adds a second.

    Multiply-adds are in billions. Operators without a product but attention are one row.
    """
    cells = {
        f"{precision}, {phase_name(phase)}": _by_kind(operators)
        for precision, phases in record["precisions"].items()
        for phase, operators in phases.items()
    }
    yield f"| share of the time (multiply-adds/s) | {' | '.join(cells)} |"
    yield "|---" * (len(cells) + 1) + "|"
    for kind in dict.fromkeys(kind for found in cells.values() for kind in found):
        shown = [_share_cell(found, kind) for found in cells.values()]
        yield f"| {kind} | {' | '.join(shown)} |"


def onednn_sentence(record: Mapping[str, Any]) -> str:
    """Say how many billions of multiply-adds a second oneDNN does in the same products."""
    by_format = []
    for name, phases in record["onednn"].items():
        speeds = ((phase, _speed(own) / 1e9) for phase, own in phases.items())
        cells = (f"{speed:.0f} ({phase_name(phase)})" for phase, speed in speeds)
        by_format.append(f"{' and '.join(cells)} in {name}")
    return f"oneDNN, in torch, multiplies the matrices of the MLPs at {', '.join(by_format)}."


def _by_kind(operators: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return kind of operator → share of the time, and multiply-adds a second."""
    total = sum(median(own["seconds"]) for own in operators.values())
    products = sorted(name for name, own in operators.items() if own["multiply_adds"])
    shown = {name: operators[name] for name in (*products, ATTENTION)}
    shares = {name: (median(own["seconds"]) / total, _speed(own)) for name, own in shown.items()}
    return shares | {"all others": (1 - sum(share for share, _ in shares.values()), 0.0)}


def _speed(work: Mapping[str, Any]) -> float:
    """Return multiply-adds a second, of the median of all times."""
    speed: float = work["multiply_adds"] / median(work["seconds"])
    return speed


def _share_cell(found: Mapping[str, tuple[float, float]], kind: str) -> str:
    if kind not in found:
        return ""
    share, speed = found[kind]
    return f"{share:.0%} ({speed / 1e9:.0f})" if speed else f"{share:.0%}"


def choice_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the speed over int4 of both forms of int8, and of both precisions by turns.

    The last columns are a lone stream's requests, computed from decoding and prefill; so is the
    last row, of 4 bits for generated tokens and rows for prompts.
    """
    columns = [*PHASES.values(), *(f"{n} : 1" for n in PROMPT_SHARES)]
    yield f"| over int4 | MB | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for name, size, cells in _choice_cells(record):
        yield f"| {name} | {size} | {' | '.join(cells)} |"


def _choice_cells(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, size in MB and speeds of each row."""
    speeds, floor = record["speed"]["speedups"], record["speed"]["floor"]
    sizes = {name: size / 1e6 for name, size in record["bytes"].items()}
    yield "int4 again", f"{sizes['int4']:.0f}", [*map(interval_cell, floor.values()), "", ""]
    for form, own in speeds.items():
        cells = [interval_cell(own[phase]) for phase in PHASES]
        cells += [f"{_request_speed(record, own, n):.2f}×" for n in PROMPT_SHARES]
        yield f"int8, {form}", f"{sizes[form]:.0f}", cells
    rows = list(speeds)[-1]
    mixed = {LONE: {"ratio": 1.0}, PROMPT: speeds[rows][PROMPT]}
    cells = ["1.00×", "1.00×", interval_cell(mixed[PROMPT])]
    cells += [f"{_request_speed(record, mixed, n):.2f}×" for n in PROMPT_SHARES]
    yield "both, by turns (computed)", f"up to {sizes['int4'] + sizes[rows]:.0f}", cells


def _request_speed(record: Mapping[str, Any], speedups: Mapping[str, Any], share: int) -> float:
    """Return the speed over int4 of a request with `share` prompt tokens for each generated one."""
    rates = record["speed"]["tokens_per_second"]
    times = {LONE: 1.0, PROMPT: float(share)}
    times = {phase: num / rates[phase]["dense"]["median"] for phase, num in times.items()}
    own = sum(time / speedups[phase]["ratio"] for phase, time in times.items())
    return float(sum(times.values()) / own)


def huge_page_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the speed in huge pages over that in small ones, by precision."""
    yield f"| precision | {' | '.join(PHASES.values())} |"
    yield "|---" * (len(PHASES) + 1) + "|"
    for name, result in record["results"].items():
        cells = (spread_cell(result["speedups"][phase]) for phase in PHASES)
        yield f"| {name} | {' | '.join(cells)} |"


def draft_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield how often each draft model is right, and the speed with it over that without one."""
    yield "| model | draft model | at a time | right | one stream | all at once | same answers |"
    yield "|---|---|---|---|---|---|---|"
    for precision, rows in record["results"].items():
        for row in rows[1:]:
            speeds = (spread_cell(row[way]["speedup"]) for way in ("one", "together"))
            yield (
                f"| {precision} | {row['draft']}, {row['draft_precision']} | {row['draft_tokens']} "
                f"| {row['acceptance']:.0%} | {' | '.join(speeds)} | {row['same_answers']:.0%} |"
            )


def speed_target_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield both targets at equal predicted speed: what they keep, measured speed, perplexity."""
    texts = list(record["dense"]["perplexity"])
    yield f"| target | removed | KV groups | predicted | measured | {' | '.join(texts)} |"
    yield "|---" * (5 + len(texts)) + "|"
    for pair in record["pairs"]:
        for kind in ("weights", "speed"):
            own, measured = pair[kind], pair["measured"][kind]["decode_batch_1"]
            low, high = measured["ci"]
            target = pair["target"] if kind == "weights" else own["predicted_speedup"]
            shown = f"{target:.0%} of weights" if kind == "weights" else f"{target:.2f}× as fast"
            cells = [f"{own['removed']:.1%}", f"{own['kv_groups']}"]
            cells += [f"{own['predicted_speedup']:.2f}×"]
            cells += [f"{measured['ratio']:.2f}× ({low:.2f} to {high:.2f})"]
            cells += [f"{own['perplexity'][text]:.2f}" for text in texts]
            yield f"| {shown} | {' | '.join(cells)} |"


def row_col_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of row-col masks and a coupled one: removed fraction and speedups."""
    yield "| mask | removed | decode, batch 1 | batch 8 | prefill | ideal decode |"
    yield "|---|---|---|---|---|---|"
    for key, name in MASKS.items():
        result = record["results"][key]
        speedups = result["onnx"]["speedups"]["onnx"]
        cells = " | ".join(f"{speedup['ratio']:.2f}×" for speedup in speedups.values())
        ideal = speedups["decode_batch_1"]["ideal"]
        yield f"| {name} | {result['figures']['removed']:.1%} | {cells} | {ideal:.2f}× |"


def mixture_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of mixtures with fewer or narrower experts: removed fraction, speedups."""
    yield "| closed | removed | decode, batch 1 | batch 8 | prefill | ideals |"
    yield "|---|---|---|---|---|---|"
    for key, result in record["results"].items():
        kind, _, share = key.rpartition("_")
        what = "of the experts" if kind == EXPERTS else "of the units of every expert"
        speedups = result["speedups"]["onnx"]
        cells = " | ".join(interval_cell(speedup) for speedup in speedups.values())
        ideals = ", ".join(f"{speedup['ideal']:.2f}×" for speedup in speedups.values())
        removed = result["figures"]["removed"]
        yield f"| {float(share):.0%} {what} | {removed:.1%} | {cells} | {ideals} |"


def operator_sentence(record: Mapping[str, Any]) -> str:
    """Say how our graph of one layer compares with ONNX Runtime's operator."""
    times = {count: found["seconds"] for count, found in record["operators"].items()}
    shown = ", ".join(f"{own['moe'] / own['ours']:.2f}× at {n}" for n, own in times.items())
    return f"Our graph of a layer is as many times as fast as the operator `MoE`: {shown} tokens."


def footprint_sentence(record: Mapping[str, Any]) -> str:
    """Say how large an installation without torch is, and how fast and large a server."""
    size, medians = record["installation"]["installed_bytes"], record["medians"]
    return (
        f"That is {size / 1e6:.0f} MB installed, {medians['first_token']:.1f} s from `sgate serve` "
        f"to the first token of the demo's model, and {medians['rss_bytes'] / 1e6:.0f} MB\n"
        "of memory while it runs "
        "([benchmarks/results/footprint.json](../benchmarks/results/footprint.json))."
    )


def soak_rows(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield how a server stood a long load of everything at once, by what the machine did."""
    yield (
        "| everything at once, hang-ups and bad bodies included | minutes | answers | wrong or "
        "missing | `/health`: 99th percentile, longest | memory, first and last third | handles "
        "before, after |"
    )
    yield "|---|---|---|---|---|---|---|"
    for machine, record in records.items():
        results = record["results"]
        counts, health = results["requests"].values(), results["health_seconds"]
        memory, idle = results["growth"]["rss_bytes"], results["idle"]
        cells = (
            machine,
            f"{record['options']['minutes']:.0f}",
            f"{sum(own['requests'] for own in counts):,}",
            f"{sum(own['failures'] for own in counts)}",
            f"{health['p99']:.3f} s, {health['max']:.3f} s",
            f"{memory['first'] / 1e6:.0f} MB, {memory['last'] / 1e6:.0f} MB",
            f"{idle['before']['handles']}, {idle['after']['handles']}",
        )
        yield f"| {' | '.join(cells)} |"


def streaming_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of conversion: seconds, speed over copying the files, and peak memory."""
    size, rounds = record["checkpoint"]["bytes"] / 2**30, record["options"]["rounds"]
    yield (
        f"| {size:.1f} GiB of bf16 weights, {rounds} rounds | seconds "
        "| speed over copying (95% interval) | peak memory |"
    )
    yield "|---|---|---|---|"
    for name, shown in STREAMING_RUNS.items():
        run, speed = record["results"][name], record["speed_of_copy"].get(name)
        cells = (
            f"{run['seconds']['median']:.1f}",
            spread_cell(speed) if speed else "",
            f"{run['peak_rss_bytes'] / 1e6:.0f} MB" if "peak_rss_bytes" in run else "",
        )
        yield f"| {shown} | {' | '.join(cells)} |"


def overhead_rows(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the overhead of a server step over an engine step, one row for each precision."""
    yield "| batch 8 | engine's step | server's step | added (95% interval) |"
    yield "|---|---|---|---|"
    for record in records:
        found, options = record["results"], record["options"]
        share = found["overhead"]
        yield (
            f"| hidden {options['hidden']} × {options['layers']} layers, {options['precision']} "
            f"| {1000 * found['engine_step_seconds']:.1f} ms "
            f"| {1000 * found['server_step_seconds']:.1f} ms "
            f"| {share['median']:+.1%} ({share['low']:+.1%} to {share['high']:+.1%}) |"
        )
