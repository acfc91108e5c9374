"""Speed of pruned encoders on ONNX Runtime, compared with torch and with torch's ONNX export.

`python -m benchmarks.encoder_speed --json FILE` creates a random classifier of BERT-base's shape
and closes 20, 30 and 40% of its heads and MLP units, unevenly over the layers. It measures each
pruned model in the same rounds as the dense model, torch's ONNX export of it, and torch itself.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.encoder_baselines import EagerTorch, TorchExport
from benchmarks.masks import uneven_values, write_pruned
from benchmarks.synthetic import write_noise
from converters.convert import ConvertOptions, convert
from sgate_serve.bench.comparison import DENSE, DENSE_AGAIN, summarise
from sgate_serve.bench.ideal import ideal_speedup
from sgate_serve.bench.rounds import measure_rounds
from sgate_serve.bench.workload import PoolingWorkload, phases, tokens_per_run
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.timed import TimedPoolingEngine
from sgate_serve.environment import hardware, library_versions, num_cpus
from sgate_serve.loaders.timing import load_timed_pooling
from sgate_serve.options import option

FRACTIONS: Mapping[str, float] = {"p20": 0.2, "p30": 0.3, "p40": 0.4}
TORCH_EXPORT, TORCH_EAGER = "torch_export", "torch_eager"
ENGINE = "onnx"


@dataclass(frozen=True)
class EncoderSpeedOptions:
    """The shape of the model, and the amount of measuring."""

    hidden: int = option(768, "hidden size")
    mlp: int = option(3072, "MLP units")
    layers: int = option(12, "layers")
    heads: int = option(12, "heads")
    vocab_size: int = option(30522, "vocabulary")
    tokens: int = option(128, "tokens of each text")
    large_batch: int = option(32, "texts read at once; a single text is measured too")
    rounds: int = option(5, "interleaved rounds")
    seed: int = option(0, "seed of weights, masks and token ids")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "bert",
            "architectures": ["BertForSequenceClassification"],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "num_labels": 2,
        }

    @property
    def workload(self) -> PoolingWorkload:
        return PoolingWorkload(
            rounds=self.rounds,
            prefill_tokens=self.tokens,
            threads=num_cpus(),
            seed=self.seed,
            batches=(1, self.large_batch),
        )


def prune(base: Checkpoint, name: str, removed: float, seed: int) -> dict[str, Any]:
    """Convert `base` into its sibling folder `name`; return the plan's figures."""
    values = uneven_values(base.spec, removed, seed)
    return write_pruned(base, name, values, to=("hf", "onnx"))


def load_all(base: Checkpoint, workload: PoolingWorkload) -> dict[str, TimedPoolingEngine]:
    """Load every model that is measured, in the order of a round."""
    root, threads = base.folder.parent, num_cpus()
    ours = {DENSE: base, **{name: Checkpoint.open(root / name) for name in FRACTIONS}}
    timed = {name: load_timed_pooling(ENGINE, m, workload.sizes) for name, m in ours.items()}
    timed[TORCH_EXPORT] = TimedPoolingEngine(TorchExport(base, root / TORCH_EXPORT, threads))
    timed[TORCH_EAGER] = TimedPoolingEngine(EagerTorch(base, threads))
    timed[DENSE_AGAIN] = load_timed_pooling(ENGINE, base, workload.sizes)
    return timed


def measure(base: Checkpoint, workload: PoolingWorkload) -> dict[str, Any]:
    """Time all models in interleaved rounds; return speedups over the dense one on our engine."""
    root = base.folder.parent
    models = load_all(base, workload)
    times = measure_rounds(phases(workload), models, workload.rounds)
    ideals = {
        name: ideal_speedup(
            base.spec, Checkpoint.open(root / name).spec, workload.prefill_tokens
        ).prefill
        for name in FRACTIONS
    } | {TORCH_EXPORT: 1.0, TORCH_EAGER: 1.0}
    results = {
        phase: summarise(seconds, ideals, tokens_per_run(workload, phase), workload.seed)
        for phase, seconds in times.items()
    }
    return {
        "base": [DENSE, DENSE_AGAIN],
        "speedups": {
            name: {phase: result.speedups[name].to_json() for phase, result in results.items()}
            for name in ideals
        },
        "floor": {phase: asdict(result.floor) for phase, result in results.items()},
        "tokens_per_second": {
            phase: {name: asdict(rate) for name, rate in result.tokens_per_second.items()}
            for phase, result in results.items()
        },
    }


def run(options: EncoderSpeedOptions) -> dict[str, Any]:
    """Create the models in a temporary folder and measure them; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-encoders-") as folder:
        root = Path(folder)
        write_noise(root / "stored", options.config, 1, options.seed)
        convert(ConvertOptions(str(root / "stored"), root / DENSE, to=("hf", "onnx")))
        base = Checkpoint.open(root / DENSE)
        figures = {
            name: prune(base, name, fraction, options.seed) for name, fraction in FRACTIONS.items()
        }
        results = measure(base, options.workload)
    return {
        "command": command_line("encoder_speed", options),
        "options": asdict(options),
        "workload": asdict(options.workload),
        "figures": figures,
        **results,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("encoder_speed", __doc__, EncoderSpeedOptions, run)


if __name__ == "__main__":
    main()
