"""Which integer precision is faster on a CPU, and for what: the ground of `--precision auto`.

`python -m benchmarks.int4_or_int8 --json FILE` compares the random model of
`sgate_serve.demo.shape` in int4 with itself in int8, in blocks and in rows, interleaved in one run:
decode steps at several batch sizes, and a prompt.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.int8 import BLOCKS, RESCALED, with_form
from benchmarks.precision import speed_record, with_graph
from benchmarks.shapes import DemoShape
from sgate_serve.bench.compare import compare
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.demo.shape import write_shape
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import ONNX_DIR, WEIGHTS_FILE
from sgate_serve.options import option

INT4 = "int4"


@dataclass(frozen=True)
class ChoiceOptions(DemoShape):
    """The random model, and the amount of measuring."""

    rounds: int = option(7, "interleaved rounds of the comparison")
    decode_steps: int = option(6, "decode steps in one timed run")
    prefill_tokens: int = option(256, "tokens of the timed prompt")
    threads: int = option(1, "threads of the engine")

    @property
    def workload(self) -> Workload:
        return Workload(
            self.rounds,
            decode_steps=self.decode_steps,
            context_tokens=8,
            prefill_tokens=self.prefill_tokens,
            threads=self.threads,
            seed=self.seed,
        )


def run(options: ChoiceOptions) -> dict[str, Any]:
    """Write and measure the three graphs in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-int4-or-int8-") as root:
        shape = Path(root) / "shape"
        write_shape(shape, options.sizes)
        int4 = with_graph(shape, Path(root) / INT4, INT4)
        blocks, rows = (with_form(shape, Path(root) / form, form) for form in (BLOCKS, RESCALED))
        record = compare(int4, blocks, "onnx", options.workload, {RESCALED: rows}).to_json()
        return {
            "command": command_line("int4_or_int8", options),
            "options": asdict(options),
            "speed": speed_record(record, BLOCKS),
            "bytes": {
                INT4: graph_bytes(int4),
                BLOCKS: graph_bytes(blocks),
                RESCALED: graph_bytes(rows),
            },
            "hardware": hardware(),
            "versions": library_versions(),
        }


def graph_bytes(model: Checkpoint) -> int:
    """Return the size of a graph's weights."""
    return (model.folder / ONNX_DIR / WEIGHTS_FILE).stat().st_size


def main() -> None:
    run_script("int4_or_int8", __doc__, ChoiceOptions, run)


if __name__ == "__main__":
    main()
