"""What the forms of int8 products cost a model, and how fast they are.

`python -m benchmarks.int8 --model MODEL --text A.txt,B.txt --json FILE` builds the int8 graph of a
real decoder in every form: products in blocks; in rows; and in rows with rescaled norms, as
conversions write them on CPUs with VNNI or AMX. It records the held-out perplexity of each on every
text. Then it compares the speed of the random model of `sgate_serve.demo.shape` in the three forms,
interleaved in one run.
"""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command_line, run_script
from benchmarks.precision import linked, perplexity_of, speed_record
from benchmarks.shapes import DemoShape
from converters.to_onnx.rescaling import zero_exponents
from converters.to_onnx.writer import build_graph, rescaling_exponents, save_graph
from sgate_serve.bench.compare import compare
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import end_token, pack, read_documents, read_tokenizer
from sgate_serve.demo.shape import write_shape
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import ONNX_DIR
from sgate_serve.onnx_format.precision import PRECISIONS
from sgate_serve.options import option

FP32, BLOCKS, ROWS, RESCALED = "fp32", "blocks of 64", "rows", "rows, rescaled"


@dataclass(frozen=True)
class Int8Options(DemoShape):
    """The model, its held-out texts, and the amount of measuring."""

    model: str = option("model", "a causal LM with its tokenizer")
    text: str = option("text.txt", "held-out texts, separated by commas")
    blocks: int = option(24, "blocks of each text, spread over it")
    seq_len: int = option(256, "tokens of a block")
    rounds: int = option(7, "interleaved rounds of the speed comparison")


def run(options: Int8Options) -> dict[str, Any]:
    """Build and measure every form in a temporary folder; return the record."""
    texts = [Path(text) for text in options.text.split(",")]
    named = replace(
        options, model=Path(options.model).name, text=",".join(text.name for text in texts)
    )
    with tempfile.TemporaryDirectory(prefix="sgate-int8-") as root:
        write_shape(Path(root) / "shape", options.sizes)
        return {
            "command": command_line("int8", named),
            "options": asdict(named),
            "perplexity": perplexities(Path(root), options, texts),
            "speed": speed(Path(root), options),
            "hardware": hardware(),
            "versions": library_versions(),
        }


def perplexities(root: Path, options: Int8Options, texts: list[Path]) -> dict[str, Any]:
    """Return form → text → perplexity."""
    model = Checkpoint.open(options.model)
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    end = end_token(model.config)
    packed = {
        text.stem: pack(read_documents(text), tokenizer, end, options.seq_len) for text in texts
    }
    sizes = OnnxOptions(slots=1, max_model_len=options.seq_len)
    found: dict[str, dict[str, float]] = {}
    for form in (FP32, BLOCKS, ROWS, RESCALED):
        write_form(model, root / form, form)
        runner = load_runner(root / form, sizes)
        found[form] = {}
        for text, blocks in packed.items():
            spread = np.linspace(0, len(blocks) - 1, options.blocks).astype(int)
            found[form][text] = perplexity_of(runner, blocks[spread])
        print(form, found[form], flush=True)
    return found


def speed(root: Path, options: Int8Options) -> dict[str, Any]:
    """Compare the random model in blocks with itself in the other forms."""
    blocks, rescaled, rows = (
        with_form(root / "shape", root / f"shape, {form}", form)
        for form in (BLOCKS, RESCALED, ROWS)
    )
    record = compare(blocks, rescaled, "onnx", options.workload, {ROWS: rows}).to_json()
    return speed_record(record, RESCALED)


def write_form(model: Checkpoint, folder: Path, form: str) -> None:
    """Write a graph of the model in one form."""
    folder.mkdir(parents=True)
    precision = PRECISIONS["fp32" if form == FP32 else "int8"]
    held = replace(precision, in_rows=form in (ROWS, RESCALED))
    if form == ROWS:
        exponents = zero_exponents(model, held)
    else:
        exponents = rescaling_exponents(model, held, folder)
    save_graph(build_graph(model, held, exponents=exponents), folder)


def with_form(source: Path, folder: Path, form: str) -> Checkpoint:
    """Create a folder with the same files and a graph of its own."""
    model = linked(source, folder)
    write_form(model, folder / ONNX_DIR, form)
    return model


def main() -> None:
    run_script("int8", __doc__, Int8Options, run)


if __name__ == "__main__":
    main()
