"""Where the time of a prompt and of a batch goes, by operator, and how fast each multiplies.

`python -m benchmarks.operators --json FILE` runs the graph of a random Llama-shaped model in every
precision under ONNX Runtime's profiler. After it, torch multiplies matrices of the sizes of its
MLPs by oneDNN, in int8 and bf16, which other engines on this CPU are built on.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.command import command_line, run_script
from benchmarks.precision import linked
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.onnx.profile import PRODUCTS, SUFFIX, node_events, profiled
from sgate_serve.engines.table import ONNX
from sgate_serve.engines.timed import TimedSizes
from sgate_serve.environment import cpu_flags, hardware, library_versions, num_cpus
from sgate_serve.loaders.timing import load_timed, write_timed_graph
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR
from sgate_serve.onnx_format.precision import FP32, INT4, precision_named, suited_to
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

# Phase → rows of a call, and new tokens of each.
PHASES = {"prefill_512": (1, 512), "decode_batch_32": (32, 1)}
CONTEXT = 64


@dataclass(frozen=True)
class OperatorsOptions(LlamaShape):
    """The shape, and the amount of measuring."""

    rounds: int = option(7, "calls of each phase, and products of each size")


def run(options: OperatorsOptions) -> dict[str, Any]:
    """Profile the model in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-operators-") as root, activity("profiling"):
        write_noise(Path(root) / "dense", options.config, 1, options.seed)
        cells = [(precision, phase) for precision in (INT4, INT8, FP32) for phase in PHASES]
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for precision, phase in counted(cells, "phase"):
            found[precision][phase] = profiles(Path(root), precision, phase, options)
        return {
            "command": command_line("operators", options),
            "options": asdict(options),
            "precisions": found,
            "onednn": onednn_times(options),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def profiles(root: Path, precision: str, phase: str, options: OperatorsOptions) -> dict[str, Any]:
    """Return operator → its seconds in each call, and its multiply-adds.

    Multiply-adds are counted for products with weights, whose names say the bits of a weight.
    """
    folder = root / precision
    if folder.exists():
        model = Checkpoint.open(folder)
    else:
        model = linked(root / "dense", folder)
        held = suited_to(precision_named(precision), cpu_flags())
        write_timed_graph(model, held)
    rows, tokens = PHASES[phase]
    sizes = TimedSizes(rows, CONTEXT + max(tokens, options.rounds))
    generator = np.random.default_rng(options.seed)
    with profiled(lambda: load_timed(ONNX, model, sizes), model.spec) as (timed, _):
        if tokens == 1:
            timed.decode_seconds(rows, CONTEXT, options.rounds, generator)
        else:
            for _ in range(options.rounds):
                timed.prefill_seconds(tokens, generator)
        bits = _bits_of(folder / ONNX_DIR / GRAPH_FILE)
        every = _calls(timed.model.runner.session)
        timed.close()
    calls = [_by_operator(call, bits) for call in every[-options.rounds :]]
    return {
        name: {"seconds": [call[name][0] for call in calls], "multiply_adds": multiplied}
        for name, (_, multiplied) in calls[0].items()
    }


def _bits_of(graph: Path) -> Mapping[str, int]:
    """Return the bits of the weights of each node of MatMulNBits, by its name."""
    nodes = (node for node in ir.load(graph).graph if "bits" in node.attributes)
    return {f"{node.name}": node.attributes["bits"].as_int() for node in nodes}


def _calls(session: Any) -> list[list[dict[str, Any]]]:
    """Stop the profiler; return the nodes of each call, which run in the order of their numbers."""
    calls: list[list[dict[str, Any]]] = []
    last = float("inf")
    for event in node_events(session):
        number = int(event["args"]["node_index"])
        if number <= last:
            calls.append([])
        calls[-1].append(event)
        last = number
    return calls


def _by_operator(
    call: Iterable[Mapping[str, Any]], bits: Mapping[str, int]
) -> dict[str, tuple[float, int]]:
    """Return operator → its seconds in a call, and its multiply-adds."""
    found: dict[str, tuple[float, int]] = {}
    for event in call:
        arguments, name = event["args"], event["args"]["op_name"]
        pairs = 0
        if name.startswith(PRODUCTS):
            inputs, outputs = (
                _shape(arguments[f"{put}_type_shape"]) for put in ("input", "output")
            )
            pairs = prod(inputs) * outputs[-1]
            width = bits.get(event["name"].removesuffix(SUFFIX))
            name = name if width is None else f"{name}, {width} bits"
        seconds, multiplied = found.get(name, (0.0, 0))
        found[name] = (seconds + event["dur"] / 1e6, multiplied + pairs)
    return found


def _shape(values: Sequence[Mapping[str, list[int]]]) -> list[int]:
    """Return the shape of the first of a node's inputs or outputs, given by their types."""
    return next(iter(values[0].values()))


def onednn_times(options: OperatorsOptions) -> dict[str, Any]:
    """Return number format → phase → the seconds of an MLP's products in all layers.

    Every layer has matrices of its own, in the layout that oneDNN prepares for the phase. bf16 is
    left out on CPUs for which oneDNN has none.
    """
    torch.set_num_threads(num_cpus())
    products = {"int8": _int8_product}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        products["bf16"] = _bf16_product
    found: dict[str, dict[str, Any]] = {name: {} for name in products}
    sizes = ((2 * options.mlp, options.hidden), (options.hidden, options.mlp))
    for phase, (rows, tokens) in PHASES.items():
        pairs = options.layers * sum(rows * tokens * prod(size) for size in sizes)
        for name, product in products.items():
            works = [product(rows * tokens, *size) for _ in range(options.layers) for size in sizes]
            seconds = [_seconds(works) for _ in range(options.rounds)]
            found[name][phase] = {"seconds": seconds, "multiply_adds": pairs}
    return found


def _int8_product(rows: int, outputs: int, inputs: int) -> Callable[[], object]:
    """Multiply bytes by signed bytes with a scale for each row of weights, into floats."""
    x = torch.randint(0, 255, (rows, inputs), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inputs])
    ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    scales = (1.0, 128, packed, ones, zeros, None, 1.0, 0, torch.float32)
    return lambda: torch.ops.onednn.qlinear_pointwise(x, *scales, "none", [], "")


def _bf16_product(rows: int, outputs: int, inputs: int) -> Callable[[], object]:
    x, weight = (torch.randn(size, inputs, dtype=torch.bfloat16) for size in (rows, outputs))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _seconds(works: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for work in works:
        work()
    return time.perf_counter() - start


def main() -> None:
    run_script("operators", __doc__, OperatorsOptions, run)


if __name__ == "__main__":
    main()
