"""Write the README's measured blocks from `benchmarks/results/demo.json`.

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
RESULT = ROOT / "benchmarks" / "results" / "demo.json"
PHASES = {"decode_batch_1": "decode, batch 1", "decode_batch_8": "decode, batch 8"}


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


def blocks(report: Mapping[str, Any]) -> dict[str, str]:
    """Return name → text of every generated block."""
    output = "\n".join(report_lines(Path("sgate-demo"), report)).strip()
    return {
        "results": f"{result_sentence(report)}\n\n" + "\n".join(result_rows(report)),
        "demo-output": f"```text\n{output}\n```",
    }


def render(text: str, report: Mapping[str, Any]) -> str:
    """Return `text` with every block replaced; each must be there exactly once."""
    for name, block in blocks(report).items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        parts = re.split(f"{start}.*?{end}", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"found the block {name} {len(parts) - 1} times, expected it once")
        text = f"{start}{block}{end}".join(parts)
    return text


def main() -> None:
    readme = ROOT / "README.md"
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    readme.write_text(render(readme.read_text(encoding="utf-8"), report), encoding="utf-8")


if __name__ == "__main__":
    main()
