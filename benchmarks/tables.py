"""Write the measured blocks of our pages from the records in `benchmarks/results/`.

`python -m benchmarks.tables` replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`.
No number is typed by hand.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_tables import (
    balance_sentence,
    changes_sentence,
    gate_cost_sentence,
    quality_blocks,
    quality_summary_rows,
)
from benchmarks.speed_tables import (
    encoder_rows,
    engine_rows,
    engine_summary_rows,
    interval_cell,
    overhead_rows,
    precision_rows,
    quantizer_rows,
    speedup_cell,
)
from sgate_serve.demo.walkthrough import report_lines

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHASES = {"decode_batch_1": "decode, batch 1", "decode_batch_8": "decode, batch 8"}
MASKS = {
    "coupled": "coupled mask of the same removed fraction",
    "row_col_price_0": "row-col, all of it cut out (`--index-price 0`)",
    "row_col_default_price": "row-col, cut out where that pays (`--target-engine onnx`)",
    "row_col_nothing_lowered": "row-col, sliced only",
}
VLLM_RUNS = ("vllm_896_compiled", "vllm_896_eager", "vllm_2048_compiled", "vllm_2048_eager")
VLLM_ROW_COL = "vllm_row_col"
VLLM_MODELS = {"p20": "20% removed", "p30": "30%", "p40": "40%"}
FOOTPRINT = "footprint"
QUALITY, QUALITY_PAIRS = "quality_packages", "quality_docstrings"
QUALITY_LM, QUALITY_LM_SHORT = "quality_language", "quality_language_short"
GATE_COST, BALANCE = "gate_cost", "encoder_balance"
QUALITY_RECORDS = {
    QUALITY: "accuracy",
    QUALITY_PAIRS: "accuracy",
    QUALITY_LM: "perplexity",
    QUALITY_LM_SHORT: "perplexity",
}
ENGINE_RUNS = ("engines_896", "engines_2048")
OVERHEAD_RUNS = ("server_overhead_fp32", "server_overhead_int4")
SPEED_RUNS = ("encoders", "precision", *OVERHEAD_RUNS)
ZERO_MASKED = {"zero_masked": "30% as zeros"}


def result_rows(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Markdown table of both comparisons, the larger shape first."""
    yield "| measured on ONNX Runtime, CPU, fp32 | speedup (95% interval) | ideal | dense / dense |"
    yield "|---|---|---|---|"
    millions = report["parameters"]["dense"] / 1e6
    shapes = (
        ("hidden 896 × 24 layers, random weights", report["shape_comparison"]),
        (f"the demo's model of {millions:.1f}M parameters, in cache", report["comparison"]),
    )
    for name, record in shapes:
        for phase, speedup in record["speedups"]["onnx"].items():
            yield (
                f"| {name}: {PHASES.get(phase, phase)} "
                f"| {interval_cell(speedup)} | {speedup['ideal']:.2f}× "
                f"| {record['floor'][phase]['ratio']:.2f}× |"
            )


def result_sentence(report: Mapping[str, Any]) -> str:
    checked, perplexity = report["verification"], report["perplexity"]
    masked = report["gates"]["scores"]["masked"]["perplexity"]["value"]
    return (
        f"The demo removes {report['removed']:.1%} of a small Llama's block weights "
        f"({report['removed_overall']:.1%} of all parameters). The converted model's logits differ "
        f"from the masked one's by at most {checked['max_abs_diff']:.1e}. Held-out perplexity: "
        f"{perplexity['dense']:.1f} dense, {masked:.1f} masked, {perplexity['pruned']:.1f} after "
        "recovery, which trains on the same text a little longer."
    )


def row_col_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the Markdown table of what row-col masks are worth beside a coupled one."""
    yield "| mask | removed | decode, batch 1 | batch 8 | prefill | ideal decode |"
    yield "|---|---|---|---|---|---|"
    for key, name in MASKS.items():
        result = record["results"][key]
        speedups = result["onnx"]["speedups"]["onnx"]
        cells = " | ".join(f"{speedup['ratio']:.2f}×" for speedup in speedups.values())
        ideal = speedups["decode_batch_1"]["ideal"]
        yield f"| {name} | {result['figures']['removed']:.1%} | {cells} | {ideal:.2f}× |"


def vllm_rows(records: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield the Markdown table of the runs called `names`: speedup, and efficiency behind it."""
    removed = VLLM_MODELS | ZERO_MASKED
    yield f"| measured on vLLM, CPU, bf16 | {' | '.join(removed.values())} | dense / dense |"
    yield "|---" * (len(removed) + 2) + "|"
    for name in names:
        record = records[name]
        options = record["options"]
        mode = "compiled" if options["compiled"] else "eager"
        for phase, floor in record["floor"].items():
            cells = [
                speedup_cell(_speedup_of(record, key, phase), floor["ratio"]) for key in removed
            ]
            yield (
                f"| hidden {options['hidden']} × {options['layers']} layers, {mode}: "
                f"{PHASES.get(phase, phase)} | {' | '.join(cells)} | {floor['ratio']:.2f}× |"
            )


def vllm_row_col_sentence(record: Mapping[str, Any]) -> str:
    """Say what index work costs: how much less of its promise a row-col mask keeps."""
    own, coupled = record["speedups"]["vllm"], record["beside"]["coupled"]
    costs = {
        PHASES.get(phase, phase): coupled[phase]["efficiency"] / own[phase]["efficiency"] - 1
        for phase in own
    }
    shown = ", ".join(f"{cost:+.1%} in {phase}" for phase, cost in costs.items())
    removed = record["figures"]["row_col"]["removed"]
    return f"Index work adds to the time of a step: {shown}. The mask removes {removed:.1%}."


def footprint_sentence(record: Mapping[str, Any]) -> str:
    """Say how large an installation without torch is, how soon it answers, in how much memory."""
    size, medians = record["installation"]["installed_bytes"], record["medians"]
    return (
        f"That is {size / 1e6:.0f} MB installed, {medians['first_token']:.1f} s from `sgate serve` "
        f"to the first token of the demo's model, and {medians['rss_bytes'] / 1e6:.0f} MB\n"
        "of memory while it runs "
        "([benchmarks/results/footprint.json](benchmarks/results/footprint.json))."
    )


def _speedup_of(record: Mapping[str, Any], name: str, phase: str) -> Mapping[str, float]:
    own: Mapping[str, Any] = record["speedups"]["vllm"]
    found: Mapping[str, float] = (own if name == record["pruned"] else record["beside"][name])[
        phase
    ]
    return found


def read_records() -> dict[str, Any]:
    """Return the records that our pages quote, by the names of their files."""
    names = (
        "demo",
        "row_col",
        FOOTPRINT,
        *VLLM_RUNS,
        VLLM_ROW_COL,
        *ENGINE_RUNS,
        *SPEED_RUNS,
        *QUALITY_RECORDS,
        GATE_COST,
        BALANCE,
    )
    return {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in names}


def blocks(records: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return page → name → text of every generated block."""
    report = records["demo"]
    output = "\n".join(report_lines(Path("sgate-demo"), report)).strip()
    return {
        "README.md": {
            "results": f"{result_sentence(report)}\n\n" + "\n".join(result_rows(report)),
            "demo-output": f"```text\n{output}\n```",
            "footprint": footprint_sentence(records[FOOTPRINT]),
            "row-col": "\n".join(row_col_rows(records["row_col"])),
            "vllm": "\n".join(vllm_rows(records, VLLM_RUNS[:1])),
            "quality": "\n".join(quality_summary_rows(records[QUALITY], "accuracy")),
            "quality-language": changes_sentence(records[QUALITY_LM], "perplexity", " 30%"),
            "engines": "\n".join(engine_summary_rows([records[name] for name in ENGINE_RUNS])),
        },
        "docs/training.md": {
            **quality_blocks("quality", records[QUALITY], "accuracy"),
            "balance": balance_sentence(records[BALANCE]),
            **quality_blocks("quality-docstrings", records[QUALITY_PAIRS], "accuracy"),
            **quality_blocks("quality-language", records[QUALITY_LM], "perplexity"),
            **quality_blocks("quality-language-short", records[QUALITY_LM_SHORT], "perplexity"),
            "gate-cost": gate_cost_sentence(records[GATE_COST]),
        },
        "docs/speed.md": {
            **{name: "\n".join(engine_rows(records[name])) for name in ENGINE_RUNS},
            "encoders": "\n".join(encoder_rows(records["encoders"])),
            "precision": "\n".join(precision_rows(records["precision"])),
            "quantizers": "\n".join(quantizer_rows(records["precision"])),
            "server-overhead": "\n".join(overhead_rows([records[name] for name in OVERHEAD_RUNS])),
        },
        "docs/vllm.md": {
            "vllm-speed": "\n".join(vllm_rows(records, VLLM_RUNS)),
            "vllm-row-col": vllm_row_col_sentence(records[VLLM_ROW_COL]),
        },
    }


def render(text: str, page_blocks: Mapping[str, str]) -> str:
    """Return `text` with every block replaced; each must be there exactly once."""
    for name, block in page_blocks.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        parts = re.split(f"{start}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"found the block {name} {len(parts) - 1} times, expected it once")
        text = f"{start}{block}{end}".join(parts)
    return text


def main() -> None:
    for page, page_blocks in blocks(read_records()).items():
        path = ROOT / page
        path.write_text(render(path.read_text(encoding="utf-8"), page_blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
