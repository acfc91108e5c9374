"""Where the time of a prompt and of a batch goes, by operator, and how fast each multiplies.

`python -m benchmarks.operators --json FILE` runs the graph of a random Llama-shaped model in every
precision under ONNX Runtime's profiler. Beside it, torch multiplies matrices of the same sizes by
oneDNN, in int8 and bf16, in the same process: what other engines on this CPU are built on.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.command import command_line, run_script
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from converters.to_onnx.writer import build_graph, save_graph
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.profile import NODE, SUFFIX
from sgate_serve.engines.onnx.runner import PROFILE, OnnxRunner
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.environment import cpu_flags, hardware, library_versions, num_cpus
from sgate_serve.onnx_format.names import GRAPH_FILE
from sgate_serve.onnx_format.precision import FP32, INT4, precision_named, suited_to
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

# Phase → rows of a call, and new tokens of each.
PHASES = {"prefill_512": (1, 512), "decode_batch_32": (32, 1)}
PRODUCTS = ("MatMulNBits", "MatMulIntegerToFloat", "FusedMatMul", "MatMul")
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
            found[precision][phase] = profiled(Path(root), precision, phase, options)
        return {
            "command": command_line("operators", options),
            "options": asdict(options),
            "precisions": found,
            "onednn": onednn_speeds(options),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def profiled(root: Path, precision: str, phase: str, options: OperatorsOptions) -> dict[str, Any]:
    """Return operator → its seconds and multiply-adds in one call, the median of all calls.

    Multiply-adds are counted for products with weights, whose names say the bits of a weight.
    """
    folder = root / precision
    if not folder.exists():
        held = suited_to(precision_named(precision), cpu_flags())
        folder.mkdir()
        save_graph(build_graph(Checkpoint.open(root / "dense"), held), folder)
    rows, tokens = PHASES[phase]
    token = PROFILE.set(root / "nodes")
    try:
        runner = load_runner(folder, OnnxOptions(slots=rows, max_model_len=CONTEXT + 512))
    finally:
        PROFILE.reset(token)
    _run_calls(runner, rows, tokens, options)
    bits = _bits_of(folder / GRAPH_FILE)
    calls = [_by_operator(call, bits) for call in _calls(runner.session)[-options.rounds :]]
    return {
        name: {
            "seconds": median(call[name][0] for call in calls),
            "multiply_adds": calls[0][name][1],
        }
        for name in calls[0]
    }


def _run_calls(runner: OnnxRunner, rows: int, tokens: int, options: OperatorsOptions) -> None:
    generator = np.random.default_rng(options.seed)

    def chunk(slot: int, count: int) -> TokenChunk:
        return TokenChunk(slot, generator.integers(0, options.vocab_size, count).tolist())

    is_decoding = tokens == 1
    if is_decoding:
        for slot in range(rows):
            runner.forward([chunk(slot, CONTEXT)])
    for _ in range(options.rounds):
        runner.forward([chunk(slot, tokens) for slot in range(rows)])
        if not is_decoding:
            runner.release(0)


def _bits_of(graph: Path) -> Mapping[str, int]:
    """Return the bits of the weights of each node of MatMulNBits, by its name."""
    nodes = (node for node in ir.load(graph).graph if "bits" in node.attributes)
    return {f"{node.name}": node.attributes["bits"].as_int() for node in nodes}


def _calls(session: Any) -> list[list[dict[str, Any]]]:
    """Stop the profiler; return the nodes of each call, which run in the order of their numbers."""
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    calls: list[list[dict[str, Any]]] = []
    last = float("inf")
    for event in sorted(events, key=lambda event: event["ts"]):
        if event.get("cat") == NODE and event["name"].endswith(SUFFIX):
            number = int(event["args"]["node_index"])
            if number <= last:
                calls.append([])
            calls[-1].append(event)
            last = number
    return calls


def _by_operator(
    call: Iterable[Mapping[str, Any]], bits: Mapping[str, int]
) -> dict[str, tuple[float, int]]:
    found: dict[str, tuple[float, int]] = {}
    for event in call:
        arguments, name = event["args"], event["args"]["op_name"]
        pairs = 0
        if name in PRODUCTS:
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


def onednn_speeds(options: OperatorsOptions) -> dict[str, dict[str, float]]:
    """Return number format → phase → multiply-adds a second of an MLP's products in torch."""
    torch.set_num_threads(num_cpus())
    found: dict[str, dict[str, float]] = {"int8": {}, "bf16": {}}
    for phase, (rows, tokens) in PHASES.items():
        for name, product in (("int8", _int8_product), ("bf16", _bf16_product)):
            sizes = ((2 * options.mlp, options.hidden), (options.hidden, options.mlp))
            works = [product(rows * tokens, *size) for size in sizes]
            seconds = [sum(_seconds(work) for work in works) for _ in range(options.rounds)]
            pairs = 3 * rows * tokens * options.hidden * options.mlp
            found[name][phase] = pairs / median(seconds)
    return found


def _int8_product(rows: int, outputs: int, inputs: int) -> Callable[[], object]:
    x = torch.randint(-127, 127, (rows, inputs), dtype=torch.int8)
    weight = torch.randint(-127, 127, (inputs, outputs), dtype=torch.int8)
    return lambda: torch._int_mm(x, weight)


def _bf16_product(rows: int, outputs: int, inputs: int) -> Callable[[], object]:
    x, weight = (torch.randn(size, inputs, dtype=torch.bfloat16) for size in (rows, outputs))
    return lambda: torch.nn.functional.linear(x, weight)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    run_script("operators", __doc__, OperatorsOptions, run)


if __name__ == "__main__":
    main()
