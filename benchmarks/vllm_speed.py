"""Speedup of pruned models on vLLM, eager or compiled.

`python -m benchmarks.vllm_speed --json FILE` creates a random Llama-shaped model, closes coupled
gates for 20, 30 and 40%, and measures each pruned model in the same rounds as the dense model and
the dense model with the pruned weights set to zero. With `--row_col SHARE` it compares a row-col
mask, all of it cut out, with a coupled mask that removes as much; the difference is the cost of
index work.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.masks import Values, coupled_values, row_col_values, write_pruned
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from converters.convert import open_masked
from sgate_serve.bench.compare import compare
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.writer import TensorHeader, new_folder
from sgate_serve.options import option
from sgate_serve.plan import Target

FRACTIONS: Mapping[str, float] = {"p20": 0.2, "p30": 0.3, "p40": 0.4}
MASKED, COUPLED, ROW_COL = "zero_masked", "coupled", "row_col"
SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class SpeedOptions(LlamaShape):
    """The shape of the model, the engine's mode, and the amount of measuring."""

    prefill_tokens: int = option(512, "tokens of the timed prompt")
    compiled: int = option(1, "1 compiles, as vLLM does by default; 0 runs eager")
    row_col: float = option(0.0, "if not 0, compare a row-col mask that closes this share")

    @property
    def workload(self) -> Workload:
        return Workload(
            rounds=self.rounds,
            decode_steps=self.decode_steps,
            prefill_tokens=self.prefill_tokens,
            engine_arguments=() if self.compiled else ("--enforce-eager",),
            seed=self.seed,
        )


def prune(base: Checkpoint, name: str, values: Values, price: int | None = None) -> dict[str, Any]:
    """Convert `base` for vLLM and return the plan's figures; a price means a row-col mask."""
    granularity = "row-col" if price is not None else "coupled"
    target = Target(engine="vllm")
    return write_pruned(base, name, values, granularity, target=target, index_price=price)


def write_masked(base: Checkpoint, gates: Path, folder: Path) -> None:
    """Write the dense model with zeros where gates are closed: a mask without conversion."""
    masked = open_masked(base.folder, gates)
    shapes = masked.spec.tensor_shapes()
    headers = [TensorHeader(name, masked.dtype(name), shape) for name, shape in shapes.items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", dict(base.config))
        writer.write_weights(headers, map(masked.read, shapes), SHARD_BYTES)


def coupled_models(base: Checkpoint, seed: int) -> dict[str, Any]:
    """Write the pruned models and the zero-masked one; return their figures."""
    figures = {
        name: prune(base, name, coupled_values(base.spec, fraction, seed))
        for name, fraction in FRACTIONS.items()
    }
    root = base.folder.parent
    write_masked(base, root / "p30-gates", root / MASKED)
    return figures


def row_col_models(base: Checkpoint, closed: float, seed: int) -> dict[str, Any]:
    """Write a row-col model with everything cut out, and a coupled one of the same size."""
    figures = {ROW_COL: prune(base, ROW_COL, row_col_values(base.spec, closed, seed), 0)}
    values = coupled_values(base.spec, figures[ROW_COL]["removed"], seed)
    return figures | {COUPLED: prune(base, COUPLED, values)}


def run(options: SpeedOptions) -> dict[str, Any]:
    """Create the models in a temporary folder and measure them; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-vllm-") as folder:
        root = Path(folder)
        write_noise(root / "dense", options.config, 1, options.seed)
        base = Checkpoint.open(root / "dense")
        if options.row_col:
            figures, first = row_col_models(base, options.row_col, options.seed), ROW_COL
            others = [COUPLED]
        else:
            figures, first = coupled_models(base, options.seed), "p30"
            others = ["p20", "p40", MASKED]
        models = {name: Checkpoint.open(root / name) for name in (first, *others)}
        beside = {name: models[name] for name in others}
        record = compare(base, models[first], "vllm", options.workload, beside).to_json()
    for path in ("dense", "pruned", "beside_folders"):
        del record[path]
    return {
        "command": command_line("vllm_speed", options),
        "options": asdict(options),
        "pruned": first,
        "figures": figures,
        **record,
    }


def main() -> None:
    run_script("vllm_speed", __doc__, SpeedOptions, run)


if __name__ == "__main__":
    main()
