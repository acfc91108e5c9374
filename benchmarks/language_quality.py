"""Perplexity cost of pruning a causal LM trained from scratch on the standard library's sources.

`python -m benchmarks.language_quality --dir DIR --json FILE` trains a Llama of about five million
parameters, finds masks by every method, recovers for a twentieth of its training tokens, and
measures the perplexity of held-out files. Like benchmarks.quality, a run can be resumed, and
`--minutes` limits it. `--size 115M --bf16 1` is for a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.command import run_script
from benchmarks.quality_cells import (
    SAVE_STEPS,
    Cell,
    Table,
    TableOptions,
    distilled_cell,
    even_cells,
    record_of,
    single_cells,
)
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.data.documents import read_documents
from sgate_serve.demo.corpus import (
    END_TOKEN,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TRAIN_FILE,
    write_corpus,
)
from sgate_serve.demo.sizes import DemoSizes
from sgate_serve.options import option
from sgate_serve.training import TrainOptions

VOCAB_SIZE = 2048


@dataclass(frozen=True)
class DenseModel:
    """Hidden size, layers, heads, KV heads and MLP units of the model, and its learning rate."""

    sizes: tuple[int, int, int, int, int]
    learning_rate: float


DENSE_MODELS: Mapping[str, DenseModel] = {
    "5M": DenseModel((256, 6, 4, 2, 704), 2e-3),
    "115M": DenseModel((1024, 10, 16, 4, 2816), 6e-4),
}


@dataclass(frozen=True)
class LanguageOptions(TableOptions):
    """The size of the dense model, and the training of it and of each cell."""

    dir: str = option("language", "working folder; a started one is continued")
    start_steps: int = option(9800, "steps of the dense model")
    steps: int = option(490, "steps of each cell: a twentieth of the dense model's tokens")
    batch_size: int = option(8, "blocks per step")
    seq_len: int = option(128, "tokens per block")
    size: str = option("5M", "parameters of the dense model: 5M or 115M")
    tests: int = option(0, "1 also trains on the library's own tests: over three times the text")
    bf16: int = option(0, "1 trains in bf16")


# Variants that separate the effect of exact gates from that of LoRA trained with them.
EVEN_GATES: Mapping[str, Any] = {"method": "gates", "balance": "even"}
SINGLE: Mapping[str, Mapping[str, Any]] = {
    "gates, even": EVEN_GATES,
    "gates, even, alone": {**EVEN_GATES, "gates_with": "none"},
    "gates, even, alone, relaxed": {
        **EVEN_GATES,
        "gates_with": "none",
        "relaxation": "gaussian",
    },
    "gates, distilled": {"method": "gates", "distill": 0.5},
    "row-col": {"method": "gates", "gates": "row-col"},
}


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first, as a run may be stopped early."""
    yield Cell("dense", {"method": "dense"})
    for target in (0.3, 0.4, 0.2):
        yield distilled_cell(target)
        for method in ("gates", "fisher", "magnitude", "random"):
            yield Cell(f"{method} {target:.0%}", {"method": method, "target": target})
    yield from even_cells()
    yield from single_cells(SINGLE)


class LanguageTable(Table):
    """The table of a causal LM; all seeds start from one dense model."""

    task, score = CAUSAL_LM, "perplexity"

    def __init__(self, options: LanguageOptions) -> None:
        super().__init__(Path(options.dir) / "cells", list(cells()), options)
        self.own = options

    @property
    def data(self) -> Path:
        return Path(self.own.dir) / "corpus"

    @property
    def workload(self) -> Workload:
        return Workload(rounds=self.own.rounds, context_tokens=64, prefill_tokens=128)

    def prepare(self) -> None:
        if not self.data.exists():
            with new_folder(self.data) as writer:
                sizes = DemoSizes(vocab_size=VOCAB_SIZE)
                write_corpus(writer, sizes, with_tests=bool(self.own.tests))

    def train_options(self, base: str | Path, out: Path, seed: int, **flags: Any) -> TrainOptions:
        return super().train_options(base, out, seed, bf16=bool(self.own.bf16), **flags)

    def start(self, seed: int) -> Path:
        from sgate_serve.training.pretrain import LlamaSizes, PretrainOptions, pretrain

        out, dense = Path(self.own.dir) / "dense", DENSE_MODELS[self.own.size]
        if not (out / SINGLE_FILE).exists():
            pretrain(
                PretrainOptions(
                    out=out,
                    documents=read_documents(self.data / TRAIN_FILE),
                    tokenizer_files=[self.data / TOKENIZER_FILE, self.data / TOKENIZER_CONFIG_FILE],
                    end_token=END_TOKEN,
                    sizes=LlamaSizes(*dense.sizes),
                    steps=self.own.start_steps,
                    batch_size=self.own.batch_size,
                    seq_len=self.own.seq_len,
                    learning_rate=dense.learning_rate,
                    save_steps=SAVE_STEPS,
                    bf16=bool(self.own.bf16),
                )
            )
        return out


def run(options: LanguageOptions) -> dict[str, Any]:
    return record_of(LanguageTable(options), "language_quality", replace(options, dir=""))


def main() -> None:
    run_script("language_quality", __doc__, LanguageOptions, run)


if __name__ == "__main__":
    main()
