"""Fill the generated blocks of README and docs from the records in `benchmarks/results/`.

`python -m benchmarks.tables` replaces the text between `<!-- NAME -->` and `<!-- /NAME -->`, so
that no measured number in those blocks is typed by hand.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_tables import engine_rows, engine_summary_rows
from benchmarks.memory_tables import (
    kv_memory_sentence,
    kv_quality_rows,
    kv_speed_rows,
    start_rows,
    way_rows,
)
from benchmarks.quality_tables import (
    balance_sentence,
    classifier_sentence,
    gate_cost_sentence,
    quality_blocks,
    quality_rows,
    recovery_rows,
    smollm2_rows,
    smollm2_sentence,
    token_rows,
)
from benchmarks.speed_tables import (
    choice_rows,
    draft_rows,
    encoder_rows,
    footprint_sentence,
    huge_page_rows,
    int4_rows,
    int8_rows,
    interval_cell,
    mixture_rows,
    onednn_sentence,
    operator_rows,
    operator_sentence,
    overhead_rows,
    precision_rows,
    quantizer_rows,
    row_col_rows,
    soak_rows,
    speed_target_rows,
    speedup_cell,
    streaming_rows,
)
from sgate_serve.demo.walkthrough import report_lines

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHASES = {"decode_batch_1": "decode, batch 1", "decode_batch_8": "decode, batch 8"}
VLLM_RUNS = ("vllm_896_compiled", "vllm_896_eager", "vllm_2048_compiled", "vllm_2048_eager")
VLLM_ROW_COL = "vllm_row_col"
VLLM_MODELS = {"p20": "20% removed", "p30": "30%", "p40": "40%"}
FOOTPRINT, STREAMING, DRAFT = "footprint", "streaming", "draft"
SOAKS = {"beside other work on the same CPUs": "soak", "nothing else": "soak_quiet"}
QUALITY, QUALITY_PAIRS = "quality_packages", "quality_docstrings"
QUALITY_LM, QUALITY_LM_SHORT = "quality_language", "quality_language_short"
SMOLLM2, SMOLLM2_SHORT, SMOLLM2_RECOVERY = "smollm2", "smollm2_short", "smollm2_recovery"
SMOLLM2_LONG, SMOLLM2_CLASSIFIER = "smollm2_long", "smollm2_classifier"
INT4_DENSE, INT4_PRUNED = "int4_dense", "int4_pruned"
INT8, HUGE_PAGES = "int8", "huge_pages"
INT4_OR_INT8, OPERATORS = "int4_or_int8", "operators"
KV_CACHE, START = "kv_cache", "start"
SPEED_TARGET = "speed_target"
GATE_COST, BALANCE = "gate_cost", "encoder_balance"
QUALITY_RECORDS = {
    QUALITY: "accuracy",
    QUALITY_PAIRS: "accuracy",
    QUALITY_LM: "perplexity",
    QUALITY_LM_SHORT: "perplexity",
}
ENGINE_RUNS = ("engines_896", "engines_576", "engines_2048")
OVERHEAD_RUNS = ("server_overhead_fp32", "server_overhead_int4")
SPEED_RUNS = ("encoders", "precision", *OVERHEAD_RUNS)
ZERO_MASKED = {"zero_masked": "30% as zeros"}


def result_rows(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the demo's two comparisons, the larger shape first."""
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
    """Say what the demo removes, how closely it verifies, and the perplexities."""
    checked, perplexity = report["verification"], report["perplexity"]
    masked = report["gates"]["scores"]["masked"]["perplexity"]["value"]
    return (
        f"The demo removes {report['removed']:.1%} of a small Llama's block weights "
        f"({report['removed_overall']:.1%} of all parameters). The converted model's logits differ "
        f"from the masked one's by at most {checked['max_abs_diff']:.1e}. Held-out perplexity: "
        f"{perplexity['dense']:.1f} dense, {masked:.1f} masked, {perplexity['pruned']:.1f} after "
        "recovery, which trains on the same text a little longer."
    )


def vllm_rows(records: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield the table of the runs `names`: speedups, with efficiencies in brackets."""
    removed = VLLM_MODELS | ZERO_MASKED
    yield f"| measured on vLLM, CPU, bf16 | {' | '.join(removed.values())} | dense / dense |"
    yield "|---" * (len(removed) + 2) + "|"
    for name in names:
        record = records[name]
        options = record["options"]
        mode = "compiled" if options["compiled"] else "eager"
        for phase, floor in record["floor"].items():
            cells = [
                speedup_cell(record, _speedup_of(record, key, phase), phase) for key in removed
            ]
            yield (
                f"| hidden {options['hidden']} × {options['layers']} layers, {mode}: "
                f"{PHASES.get(phase, phase)} | {' | '.join(cells)} | {floor['ratio']:.2f}× |"
            )


def vllm_row_col_sentence(record: Mapping[str, Any]) -> str:
    """Say what index work costs: how much lower the efficiency of a row-col mask is."""
    own, coupled = record["speedups"]["vllm"], record["beside"]["coupled"]
    costs = {
        PHASES.get(phase, phase): coupled[phase]["efficiency"] / own[phase]["efficiency"] - 1
        for phase in own
    }
    shown = ", ".join(f"{cost:+.1%} in {phase}" for phase, cost in costs.items())
    removed = record["figures"]["row_col"]["removed"]
    return f"Index work adds to the time of a step: {shown}. The mask removes {removed:.1%}."


def _speedup_of(record: Mapping[str, Any], name: str, phase: str) -> Mapping[str, float]:
    own: Mapping[str, Any] = record["speedups"]["vllm"]
    found: Mapping[str, float] = (own if name == record["pruned"] else record["beside"][name])[
        phase
    ]
    return found


def read_records() -> dict[str, Any]:
    """Return file name → record, for every record that a generated block uses."""
    names = (
        "demo",
        "row_col",
        "mixtures",
        FOOTPRINT,
        *SOAKS.values(),
        STREAMING,
        DRAFT,
        *VLLM_RUNS,
        VLLM_ROW_COL,
        *ENGINE_RUNS,
        *SPEED_RUNS,
        *QUALITY_RECORDS,
        SMOLLM2,
        SMOLLM2_SHORT,
        SMOLLM2_RECOVERY,
        SMOLLM2_LONG,
        SMOLLM2_CLASSIFIER,
        INT4_DENSE,
        INT8,
        INT4_OR_INT8,
        OPERATORS,
        HUGE_PAGES,
        KV_CACHE,
        START,
        SPEED_TARGET,
        INT4_PRUNED,
        GATE_COST,
        BALANCE,
    )
    return {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in names}


def blocks(records: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return page → name → text of every generated block."""
    results = result_block(records["demo"])
    return {
        "README.md": {
            "results": results,
            "engines": "\n".join(engine_summary_rows(records[ENGINE_RUNS[0]])),
            "smollm2-summary": smollm2_sentence(records[SMOLLM2]),
            "smollm2-classifier": classifier_sentence(records[SMOLLM2_CLASSIFIER]),
        },
        "docs/demo.md": {"results": results, "demo-output": demo_output(records["demo"])},
        "docs/server.md": {
            "soak": "\n".join(soak_rows({of: records[name] for of, name in SOAKS.items()}))
        },
        "docs/training.md": training_blocks(records),
        "docs/speed.md": speed_blocks(records),
        "docs/vllm.md": {
            "vllm-speed": "\n".join(vllm_rows(records, VLLM_RUNS)),
            "vllm-row-col": vllm_row_col_sentence(records[VLLM_ROW_COL]),
        },
    }


def result_block(report: Mapping[str, Any]) -> str:
    """Return what the demo measured, in a sentence and a table."""
    return f"{result_sentence(report)}\n\n" + "\n".join(result_rows(report))


def demo_output(report: Mapping[str, Any]) -> str:
    output = "\n".join(report_lines(Path("sgate-demo"), report)).strip()
    return f"```text\n{output}\n```"


def speed_blocks(records: Mapping[str, Any]) -> dict[str, str]:
    return {
        "engines": "\n".join(engine_summary_rows(records[ENGINE_RUNS[0]])),
        "row-col": "\n".join(row_col_rows(records["row_col"])),
        "mixtures": "\n".join(mixture_rows(records["mixtures"])),
        "mixture-operator": operator_sentence(records["mixtures"]),
        **{name: "\n".join(engine_rows(records[name])) for name in ENGINE_RUNS},
        "operators": "\n".join(operator_rows(records[OPERATORS])),
        "onednn": onednn_sentence(records[OPERATORS]),
        "encoders": "\n".join(encoder_rows(records["encoders"])),
        "precision": "\n".join(precision_rows(records["precision"])),
        "quantizers": "\n".join(quantizer_rows(records["precision"])),
        "int4": "\n".join(int4_rows(records[INT4_DENSE], records[INT4_PRUNED])),
        "int8": "\n".join(int8_rows(records[INT8])),
        "int4-or-int8": "\n".join(choice_rows(records[INT4_OR_INT8])),
        "huge-pages": "\n".join(huge_page_rows(records[HUGE_PAGES])),
        "kv-cache-quality": "\n".join(kv_quality_rows(records[KV_CACHE])),
        "kv-cache-memory": kv_memory_sentence(records[KV_CACHE]),
        "kv-cache-speed": "\n".join(kv_speed_rows(records[KV_CACHE])),
        "draft": "\n".join(draft_rows(records[DRAFT])),
        "start": "\n".join(start_rows(records[START])),
        "start-ways": "\n".join(way_rows(records[START])),
        "server-overhead": "\n".join(overhead_rows([records[name] for name in OVERHEAD_RUNS])),
        "footprint": footprint_sentence(records[FOOTPRINT]),
        "streaming": "\n".join(streaming_rows(records[STREAMING])),
    }


def training_blocks(records: Mapping[str, Any]) -> dict[str, str]:
    return {
        "smollm2": "\n".join(smollm2_rows(records[SMOLLM2])),
        "smollm2-short": "\n".join(smollm2_rows(records[SMOLLM2_SHORT])),
        "smollm2-tokens": "\n".join(
            token_rows([records[n] for n in (SMOLLM2_SHORT, SMOLLM2, SMOLLM2_LONG)], "default 30%")
        ),
        "smollm2-recovery": "\n".join(recovery_rows(records[SMOLLM2_RECOVERY])),
        "smollm2-classifier": "\n".join(quality_rows(records[SMOLLM2_CLASSIFIER], "accuracy")),
        **quality_blocks("quality", records[QUALITY], "accuracy"),
        "speed-target": "\n".join(speed_target_rows(records[SPEED_TARGET])),
        "balance": balance_sentence(records[BALANCE]),
        **quality_blocks("quality-docstrings", records[QUALITY_PAIRS], "accuracy"),
        **quality_blocks("quality-language", records[QUALITY_LM], "perplexity"),
        **quality_blocks("quality-language-short", records[QUALITY_LM_SHORT], "perplexity"),
        "gate-cost": gate_cost_sentence(records[GATE_COST]),
    }


def render(text: str, page_blocks: Mapping[str, str]) -> str:
    """Return `text` with every block replaced.

    Raises ValueError for a block that is missing or occurs more than once.
    """
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
