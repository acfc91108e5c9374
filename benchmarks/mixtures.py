"""Speed of a mixture with fewer experts, or narrower ones, and of the operators behind it.

`python -m benchmarks.mixtures --json FILE` creates a random Qwen3-MoE, closes a share of its
experts or the same share of every expert's units, and compares each result with the dense model on
ONNX Runtime. Then one layer alone is computed by our graph and by ONNX Runtime's own `MoE`.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.command import command_line, run_script
from benchmarks.masks import Values, write_pruned
from benchmarks.synthetic import write_noise
from converters.to_onnx import write_onnx
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.mixture import MixtureBlock
from converters.to_onnx.products import Products
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.compare import compare
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import hardware, library_versions
from sgate_serve.gates.keys import EXPERTS, MLP_UNITS, coupled_sites
from sgate_serve.onnx_format.names import MICROSOFT, ONNX_DIR
from sgate_serve.onnx_format.precision import FP32, PRECISIONS
from sgate_serve.options import option

TOKENS = (1, 8, 128)


@dataclass(frozen=True)
class MixtureOptions:
    """The sizes of the random mixture, and the rounds."""

    hidden: int = option(896, "hidden size")
    layers: int = option(8, "layers, all of them mixtures")
    experts: int = option(32, "experts of a layer")
    units: int = option(448, "units of an expert")
    top_k: int = option(4, "experts that a token uses")
    rounds: int = option(5, "interleaved rounds of each comparison")
    threads: int = option(1, "threads")
    seed: int = option(0, "seed of weights, masks and tokens")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "vocab_size": 8192,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 2048,
            "num_experts": self.experts,
            "moe_intermediate_size": self.units,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        }

    @property
    def workload(self) -> Workload:
        return Workload(
            self.rounds, decode_steps=8, context_tokens=8, prefill_tokens=128, threads=self.threads
        )


def mask(spec: ModelSpec, kind: str, share: float, seed: int) -> Values:
    """Close a share of the experts of every layer, or of the units of every expert."""
    random, values = np.random.default_rng(seed), {}
    for site in coupled_sites(spec):
        if site.kind == kind:
            gates = np.ones(site.num_gates, np.float32)
            gates[random.permutation(site.num_gates)[: round(share * site.num_gates)]] = 0
            values[site.key] = gates
    return values


def run(options: MixtureOptions) -> dict[str, Any]:
    """Create, convert and measure everything in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-mixtures-") as folder:
        root, results = Path(folder), {}
        write_noise(root / "dense", options.config, 1, options.seed)
        dense = Checkpoint.open(root / "dense")
        write_onnx(dense, root / "dense" / ONNX_DIR)
        for kind in (EXPERTS, MLP_UNITS):
            for share in (0.25, 0.5):
                name = f"{kind}_{share:g}"
                values = mask(dense.spec, kind, share, options.seed)
                figures = write_pruned(dense, name, values, to=("hf", "onnx"))
                pruned = Checkpoint.open(root / name)
                record = compare(dense, pruned, "onnx", options.workload).to_json()
                kept = ("base", "speedups", "floor", "tokens_per_second", "workload")
                results[name] = {"figures": figures} | {key: record[key] for key in kept}
        return {
            "command": command_line("mixtures", options),
            "options": asdict(options),
            "results": results,
            "operators": operator_times(dense, options),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def operator_times(dense: Checkpoint, options: MixtureOptions) -> dict[str, Any]:
    """Return number of tokens → seconds of layer 0 by each graph, in interleaved runs."""
    sessions = {
        name: _session(graph, options.threads)
        for name, graph in (("ours", _our_graph(dense)), ("moe", _their_graph(dense)))
    }
    random, found = np.random.default_rng(options.seed), {}
    for count in TOKENS:
        x = random.normal(0, 1, (count, options.hidden)).astype(np.float32)
        outputs = {name: session.run(None, {"x": x})[0] for name, session in sessions.items()}
        scale = float(np.abs(outputs["ours"]).max())
        difference = float(np.abs(outputs["ours"] - outputs["moe"]).max()) / scale
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(4 * options.rounds):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, {"x": x})
                times[name].append(time.perf_counter() - start)
        found[str(count)] = {
            "relative_difference": difference,
            "seconds": {name: statistics.median(runs) for name, runs in times.items()},
            "runs": times,
        }
    return found


def _session(model: ir.Model, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _our_graph(dense: Checkpoint) -> ir.Model:
    graph = GraphBuilder()
    x = graph.input("x", ir.DataType.FLOAT, ["t", dense.spec.hidden_size])
    block = MixtureBlock(graph, Products(graph, x, PRECISIONS[FP32]), dense, 0)
    graph.output(block(x), "y", ["t", dense.spec.hidden_size])
    return graph.model({})


def _their_graph(dense: Checkpoint) -> ir.Model:
    """Return a graph of ONNX Runtime's operator, whose gate and up rows alternate."""
    graph, spec = GraphBuilder(), dense.spec
    x = graph.input("x", ir.DataType.FLOAT, ["t", spec.hidden_size])
    name = f"{spec.family.layer_name(0)}.mlp"
    read = _stacks(dense, name)
    weights = [graph.constant(part, array) for part, array in read.items()]
    (scores,) = graph.node("MatMul", [x, weights[0]])
    attributes: Mapping[str, Any] = {
        "k": spec.layers[0].top_k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": int(spec.norm_topk_prob),
    }
    inputs = [x, scores, weights[1], None, weights[2]]
    (y,) = graph.node("MoE", inputs, attributes, domain=MICROSOFT)
    graph.output(y, "y", ["t", spec.hidden_size])
    return graph.model({})


def _stacks(dense: Checkpoint, block: str) -> dict[str, NDArray[np.float32]]:
    """Return the router [hidden, experts] and the experts' matrices as the operator takes them."""
    count = len(dense.spec.layers[0].experts)

    def every(linear: str) -> NDArray[np.float32]:
        names = (f"{block}.experts.{number}.{linear}.weight" for number in range(count))
        return np.stack([dense.read(name).astype(np.float32) for name in names])

    gate, up = every("gate_proj"), every("up_proj")
    both = np.stack([gate, up], axis=2).reshape(count, -1, gate.shape[2])
    router = dense.read(f"{block}.gate.weight").astype(np.float32).T
    return {"router": np.ascontiguousarray(router), "both": both, "down": every("down_proj")}


def main() -> None:
    run_script("mixtures", __doc__, MixtureOptions, run)


if __name__ == "__main__":
    main()
