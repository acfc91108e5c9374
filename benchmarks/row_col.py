"""Speedup of row-col masks, compared with a coupled mask that removes as much.

`python -m benchmarks.row_col --json FILE` creates the random model of `sgate_serve.demo.shape`,
closes a share of the rows and columns of every linear, and converts it three times: with everything
lowered, at the onnx engine's index price, and with nothing lowered. These three, and a coupled mask
with the removed fraction of the first, are compared with the dense model. A small model of the same
hidden size, whose mask closes almost nothing, shows the cost of one index operation.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.masks import (
    Values,
    coupled_values,
    probe_values,
    row_col_values,
    write_pruned,
)
from benchmarks.shapes import DemoShape
from benchmarks.synthetic import write_noise
from converters.to_onnx import build_graph, write_onnx
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import compare
from sgate_serve.bench.ideal import decode_weights
from sgate_serve.bench.workload import PREFILL, Workload, tokens_per_run
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.demo.shape import shape_config, write_shape
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import ONNX_DIR
from sgate_serve.options import option
from sgate_serve.plan import Target

# Name of the conversion → index price; None is the engine's own price.
NOTHING_LOWERED = 2**62
PRICES: Mapping[str, int | None] = {
    "row_col_price_0": 0,
    "row_col_default_price": None,
    "row_col_nothing_lowered": NOTHING_LOWERED,
}
COUPLED = "coupled"
# Small matrices of the same hidden size, so that index operations take much of the time.
PROBE: Mapping[str, Any] = {
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
}
PROBE_WORKLOAD = Workload(rounds=9, decode_steps=32, context_tokens=8, prefill_tokens=128)


@dataclass(frozen=True)
class RowColOptions(DemoShape):
    """The model's depth and vocabulary, the mask, and the rounds."""

    rounds: int = option(3, "interleaved rounds of each comparison on the onnx engine")
    torch_rounds: int = option(1, "the same on the torch reference; 0 skips it")
    closed: float = option(0.25, "share of rows and of columns that is closed in every linear")

    @property
    def torch_workload(self) -> Workload:
        return Workload(self.torch_rounds, decode_steps=2, context_tokens=2, prefill_tokens=32)


def convert_masked(
    base: Checkpoint, name: str, values: Values, price: int | None
) -> dict[str, Any]:
    """Convert `base` into its sibling folder `name`; return the plan's figures and index work."""
    options = {"to": ("hf", "onnx"), "target": Target(engine="onnx"), "index_price": price}
    return {
        "index_price": price,
        "figures": write_pruned(base, name, values, "row-col", **options),
        "index_operations": index_operations(base.folder.parent / name),
    }


def index_operations(folder: Path) -> int:
    """Count the gathers and scatters of a folder's graph."""
    nodes = build_graph(Checkpoint.open(folder)).graph
    return sum(node.op_type == "GatherElements" for node in nodes)


def measure(dense: Checkpoint, name: str, engine: str, workload: Workload) -> dict[str, Any]:
    """Compare `dense` with its sibling folder `name`; return the record without their paths."""
    pruned = Checkpoint.open(dense.folder.parent / name)
    record = compare(dense, pruned, engine, workload).to_json()
    kept = ("base", "speedups", "floor", "tokens_per_second", "workload")
    return {key: record[key] for key in kept}


def index_cost(
    probe: Mapping[str, Any], large: Mapping[str, Any], spec: ModelSpec
) -> dict[str, Any]:
    """Return phase → cost of one index operation, in µs and in weights read in that time.

    `probe` are the measurements of the small model, `large` those of the dense model `spec`, whose
    time per weight is what a lowering can save.
    """
    costs = {}
    for phase, speedup in probe["speedups"]["onnx"].items():
        step = _seconds(probe, phase) / probe["index_operations"]
        weights = spec.num_gateable if phase == PREFILL else decode_weights(spec)
        per_weight = _seconds(large, phase) / weights
        # A ratio below 1 is the slowdown caused by all operations together.
        seconds = {k: step * (1 / v - 1) for k, v in _estimates(speedup).items()}
        costs[phase] = {
            "microseconds": {k: 1e6 * v for k, v in seconds.items()},
            "weights": {k: round(v / per_weight) for k, v in seconds.items()},
            "weights_per_microsecond": 1e-6 / per_weight,
        }
    return costs


def run(options: RowColOptions) -> dict[str, Any]:
    """Create, convert and measure everything in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-row-col-") as folder:
        root = Path(folder)
        dense, results = _shape_base(root, options), {}
        values = row_col_values(dense.spec, options.closed, options.seed)
        for name, price in PRICES.items():
            results[name] = convert_masked(dense, name, values, price)
        removed = results["row_col_price_0"]["figures"]["removed"]
        values = coupled_values(dense.spec, removed, options.seed)
        results[COUPLED] = convert_masked(dense, COUPLED, values, None)
        for name, result in results.items():
            result["onnx"] = measure(dense, name, "onnx", options.workload)
        for name in ("row_col_price_0", COUPLED) if options.torch_rounds else ():
            results[name]["torch"] = measure(dense, name, "torch", options.torch_workload)
        probe = _probe(root, options)
        return {
            "command": command_line("row_col", options),
            "options": asdict(options),
            "block_weights": dense.spec.num_gateable,
            "results": results,
            "index_probe": probe,
            "index_cost": index_cost(probe, results["row_col_price_0"]["onnx"], dense.spec),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def main() -> None:
    run_script("row_col", __doc__, RowColOptions, run)


def _shape_base(root: Path, options: RowColOptions) -> Checkpoint:
    write_shape(root / "dense", options.sizes)
    return _with_graph(root / "dense")


def _probe(root: Path, options: RowColOptions) -> dict[str, Any]:
    write_noise(root / "probe", {**shape_config(options.sizes), **PROBE}, 1, options.seed)
    base = _with_graph(root / "probe")
    values = probe_values(base.spec, options.seed)
    converted = convert_masked(base, "probe-lowered", values, 0)
    return converted | measure(base, "probe-lowered", "onnx", PROBE_WORKLOAD)


def _with_graph(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(folder)
    write_onnx(checkpoint, folder / ONNX_DIR)
    return checkpoint


def _seconds(record: Mapping[str, Any], phase: str) -> float:
    """Return the dense model's seconds of one call: a decode step, or the whole prompt."""
    workload = Workload(**record["workload"])
    tokens = tokens_per_run(workload, phase)
    calls = 1 if phase == PREFILL else workload.decode_steps
    return float(tokens / calls / record["tokens_per_second"][phase]["dense"]["median"])


def _estimates(speedup: Mapping[str, Any]) -> dict[str, float]:
    low, high = speedup["ci"]
    return {"median": speedup["ratio"], "low": high, "high": low}


if __name__ == "__main__":
    main()
