"""Write the README's measured blocks from the records in `benchmarks/results/`.

`python -m benchmarks.tables` replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`.
No number is typed by hand.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgate_serve.demo.run import report_lines

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHASES = {"decode_batch_1": "decode, batch 1", "decode_batch_8": "decode, batch 8"}
MASKS = {
    "coupled": "coupled mask of the same removed fraction",
    "row_col_price_0": "row-col, all of it cut out (`--index-price 0`)",
    "row_col_default_price": "row-col, cut out where that pays (`--target-engine onnx`)",
    "row_col_nothing_lowered": "row-col, sliced only",
}


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
            low, high = speedup["ci"]
            yield (
                f"| {name}: {PHASES.get(phase, phase)} "
                f"| {speedup['ratio']:.2f}× ({low:.2f} to {high:.2f}) | {speedup['ideal']:.2f}× "
                f"| {record['floor'][phase]['ratio']:.2f}× |"
            )


def result_sentence(report: Mapping[str, Any]) -> str:
    checked, perplexity = report["verification"], report["perplexity"]
    masked = report["gates"]["perplexity"]["masked"]
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


def read_records() -> dict[str, Any]:
    """Return the records that the README quotes, by the names of their files."""
    names = ("demo", "row_col")
    return {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in names}


def blocks(records: Mapping[str, Any]) -> dict[str, str]:
    """Return name → text of every generated block."""
    report = records["demo"]
    output = "\n".join(report_lines(Path("sgate-demo"), report)).strip()
    return {
        "results": f"{result_sentence(report)}\n\n" + "\n".join(result_rows(report)),
        "demo-output": f"```text\n{output}\n```",
        "row-col": "\n".join(row_col_rows(records["row_col"])),
    }


def render(text: str, records: Mapping[str, Any]) -> str:
    """Return `text` with every block replaced; each must be there exactly once."""
    for name, block in blocks(records).items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        parts = re.split(f"{start}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"found the block {name} {len(parts) - 1} times, expected it once")
        text = f"{start}{block}{end}".join(parts)
    return text


def main() -> None:
    readme = ROOT / "README.md"
    text = render(readme.read_text(encoding="utf-8"), read_records())
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
