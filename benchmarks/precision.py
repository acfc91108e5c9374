"""Quality and speed of graphs in every precision, and of other ways to round to 4 bits.

`python -m benchmarks.precision --json FILE` computes the held-out perplexity of a trained model, by
default the demo's, on the onnx engine: for the graph in every precision, and for an fp32 graph
whose weights each quantizer has rounded to 4 bits, at several block sizes. Then it compares the
speed of the random model of `sgate_serve.demo.shape` in every precision, interleaved in one run.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import command_line, run_script
from benchmarks.quantizers import QUANTIZERS, Floats
from benchmarks.shapes import DemoShape
from converters.to_onnx import write_onnx
from sgate_serve.bench.compare import compare
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import TensorHeader, new_folder
from sgate_serve.data.documents import end_token, pack, read_documents, read_tokenizer
from sgate_serve.demo.shape import write_shape
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import Runner, all_logits
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import ONNX_DIR
from sgate_serve.onnx_format.precision import FP32, PRECISIONS
from sgate_serve.options import option
from sgate_serve.reports.evaluation import nats_of

Tokens = NDArray[np.int64]

BLOCKS = (32, 64, 128)
# fp16 is no faster on CPUs, so only its perplexity is measured.
TIMED = ("int8", "int4")
SHARD_BYTES = 2 * 2**30


@dataclass(frozen=True)
class PrecisionOptions(DemoShape):
    """The trained model, its held-out text, and the amount of measuring."""

    model: str = option("sgate-demo/dense", "a trained causal LM with its tokenizer")
    text: str = option("sgate-demo/corpus/eval.jsonl", "held-out text")
    blocks: int = option(128, "blocks of text")
    seq_len: int = option(128, "tokens of a block")
    rounds: int = option(5, "interleaved rounds of the speed comparison; 0 leaves it out")


def run(options: PrecisionOptions) -> dict[str, Any]:
    """Measure both parts in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-precision-") as folder:
        root = Path(folder)
        return {
            "command": command_line("precision", options),
            "options": asdict(options),
            "precisions": {name: asdict(precision) for name, precision in PRECISIONS.items()},
            "perplexity": perplexities(root, options),
            "speed": speed(root, options) if options.rounds else None,
            "hardware": hardware(),
            "versions": library_versions(),
        }


def perplexities(root: Path, options: PrecisionOptions) -> dict[str, Any]:
    """Return perplexity by precision, and by quantizer and block size of 4-bit weights."""
    model = Checkpoint.open(options.model)
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    documents = read_documents(Path(options.text))
    blocks = pack(documents, tokenizer, end_token(model.config), options.seq_len)[: options.blocks]
    graphs = {name: perplexity(model, root / f"ppl-{name}", blocks, name) for name in PRECISIONS}
    alone: dict[str, dict[str, float]] = {}
    for name, quantize in QUANTIZERS.items():
        for block in BLOCKS:
            rounded = write_rounded(model, root / f"{name}-{block}", quantize, block)
            found = perplexity(rounded, rounded.folder / ONNX_DIR, blocks)
            alone.setdefault(name, {})[str(block)] = found
    return {"num_tokens": int(blocks[:, 1:].size), "graphs": graphs, "weights_alone": alone}


def perplexity(model: Checkpoint, folder: Path, blocks: Tokens, precision: str = FP32) -> float:
    """Build the graph in `folder` and return exp of its mean loss on [num_blocks, seq_len]."""
    write_onnx(model, folder, PRECISIONS[precision])
    runner = load_runner(folder, SlotOptions(slots=1, max_model_len=blocks.shape[1]))
    return perplexity_of(runner, blocks)


def perplexity_of(runner: Runner, blocks: Tokens) -> float:
    """Return exp of the mean loss on blocks [num_blocks, seq_len], whose first token has none."""
    losses = [nats_of(all_logits(runner, block), block) / (len(block) - 1) for block in blocks]
    return float(np.exp(np.mean(losses)))


def write_rounded(
    model: Checkpoint, folder: Path, quantize: Callable[[Floats, int], Floats], block: int
) -> Checkpoint:
    """Write an fp32 copy of the model in which the linears of the blocks are rounded."""
    names = {f"{module}.weight" for module in model.spec.module_names()}
    headers = [
        TensorHeader(name, "F32", shape) for name, shape in model.spec.tensor_shapes().items()
    ]

    def arrays() -> Iterator[Array]:
        for header in headers:
            array = model.read(header.name).astype(np.float32)
            yield quantize(array, block) if header.name in names else array

    with new_folder(folder) as writer:
        writer.write_json("config.json", {**model.config, "dtype": "float32"})
        writer.write_weights(headers, arrays(), SHARD_BYTES)
    return Checkpoint.open(folder)


def speed(root: Path, options: PrecisionOptions) -> dict[str, Any]:
    """Compare the random model in fp32 with itself in the other precisions."""
    write_shape(root / "shape", options.sizes)
    folders = {name: with_graph(root / "shape", root / f"shape-{name}", name) for name in TIMED}
    dense = with_graph(root / "shape", root / "shape-fp32", FP32)
    first, *others = TIMED
    beside = {name: folders[name] for name in others}
    record = compare(dense, folders[first], "onnx", options.workload, beside).to_json()
    return speed_record(record, first)


def speed_record(record: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return what is kept of a comparison; its pruned model is named `first`, as those beside."""
    return {
        "speedups": {first: record["speedups"]["onnx"], **record["beside"]},
        **{key: record[key] for key in ("base", "floor", "tokens_per_second", "workload", "order")},
    }


def with_graph(source: Path, folder: Path, precision: str) -> Checkpoint:
    """Create a folder with the same files and a graph of its own."""
    model = linked(source, folder)
    write_onnx(model, folder / ONNX_DIR, PRECISIONS[precision])
    return model


def linked(source: Path, folder: Path) -> Checkpoint:
    """Create a folder with the same files."""
    folder.mkdir()
    for file in source.iterdir():
        os.link(file, folder / file.name)
    return Checkpoint.open(folder)


def main() -> None:
    run_script("precision", __doc__, PrecisionOptions, run)


if __name__ == "__main__":
    main()
