"""How long a server takes to its first token, and what ONNX Runtime could do about it.

`python -m benchmarks.start --model FOLDER --json FILE` starts `sgate serve` for a real model and
for a random one of the shape of Llama 3.2 1B: with an empty cache, so that the graph is built, and
with the graph found there. Then it opens each graph as the engine does, without packing its weights
for the kernels, and with packed weights that were stored. Everything takes turns, and what has been
measured is kept in a working folder.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.command import command_line, run_script
from benchmarks.footprint import memory_of, serve_words, start_once
from benchmarks.synthetic import LLAMA_1B, write_noise
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import GRAPH_FILE, LOGITS, ONNX_DIR, WEIGHTS_FILE
from sgate_serve.onnx_format.one_call import prefill_feeds
from sgate_serve.options import option

PROMPT, STEPS = [1, 2, 3], 8
PACKED, UNPACKED, STORED = "packed when loaded", "not packed", "stored packed"
# The session's settings of each way to hold the weights.
WAYS = {PACKED: {}, UNPACKED: {"session.disable_prepacking": "1"}, STORED: {}}
STORING = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS_FILE,
    "session.optimized_model_external_initializers_min_size_in_bytes": "256",
    "session.save_external_prepacked_constant_initializers": "1",
}


@dataclass(frozen=True)
class StartOptions:
    """The models, and the amount of measuring."""

    model: str = option("model", "a causal LM")
    precisions: str = option("fp32,int8", "precisions of its graph, separated by commas")
    layers: int = option(16, "layers of the random model")
    random_precisions: str = option("int8", "precisions of the random model's graph")
    builds: int = option(2, "starts with an empty cache")
    starts: int = option(5, "starts with a graph that is found, and openings of a graph")
    dir: str = option("start", "working folder; a started one is continued")


class Kept:
    """Numbers that were measured before, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, list[dict[str, float]]] = (
            json.loads(path.read_text("utf-8")) if path.exists() else {}
        )

    def add(self, name: str, count: int, measure: Callable[[], dict[str, float]]) -> None:
        """Measure a cell once more unless it has `count` measurements."""
        cell = self.cells.setdefault(name, [])
        if len(cell) < count:
            cell.append(measure())
            print(name, cell[-1], flush=True)
            self.path.write_text(json.dumps(self.cells), encoding="utf-8")


@dataclass(frozen=True)
class Served:
    """A model in one precision, and the folders of what is measured of it."""

    label: str
    model: Path
    precision: str
    root: Path

    def start(self, cache: Path) -> dict[str, float]:
        command = [sys.executable, "-m", "sgate_serve", *serve_words(self.model)]
        command += ["--", "--precision", self.precision]
        return start_once(command, PROMPT, {"SGATE_CACHE": str(cache)})

    def build(self) -> dict[str, float]:
        """Start with an empty cache."""
        cache = self.root / "built"
        shutil.rmtree(cache, ignore_errors=True)
        try:
            return self.start(cache)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    @property
    def found(self) -> Path:
        return self.root / "found"

    def graph(self, way: str) -> Path:
        """Return the folder of the graph that a start finds, or of the stored one."""
        if way == STORED:
            return self.root / "stored"
        (folder,) = (self.found / ONNX_DIR).iterdir()
        return folder


def measure(served: list[Served], kept: Kept, options: StartOptions) -> None:
    """Fill the cells of all models, in turns."""
    for one in served:
        # The second start hashes the new graph, which later ones find hashed.
        kept.add(f"{one.label}: first found", 1, partial(prepared, one))
    for number in range(max(options.builds, options.starts)):
        for one in served[:: 1 if number % 2 else -1]:
            kept.add(f"{one.label}: built", options.builds, one.build)
            kept.add(f"{one.label}: found", options.starts, partial(one.start, one.found))
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                name = f"{one.label}: {way}"
                kept.add(name, options.starts, partial(opened, one.graph(way), way))


def prepared(one: Served) -> dict[str, float]:
    """Build the graph and store it packed; return the times of the start after."""
    for folder in (one.found, one.root / "stored"):
        shutil.rmtree(folder, ignore_errors=True)
    one.start(one.found)
    target = one.graph(STORED)
    target.mkdir(parents=True)
    options = session_options(STORING)
    # Our graphs have the operators that run, so there is nothing to optimize.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(target / GRAPH_FILE)
    ort.InferenceSession(str(one.graph(PACKED) / GRAPH_FILE), options)
    return one.start(one.found)


def session_options(settings: dict[str, str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    return options


def opened(folder: Path, way: str) -> dict[str, float]:
    """Open a graph in a process of its own, and run a token."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=serve, args=(other, folder, WAYS[way]))
    process.start()
    found: dict[str, float] = connection.recv()
    process.join()
    stored = sum(file.stat().st_size for file in folder.iterdir())
    return {**found, "stored_bytes": stored}


def serve(connection: Connection, folder: Path, settings: dict[str, str]) -> None:
    begun, cpu = time.perf_counter(), time.process_time()
    session = ort.InferenceSession(str(folder / GRAPH_FILE), session_options(settings))
    found = {"open": time.perf_counter() - begun, "open_cpu": time.process_time() - cpu}
    feeds, steps = prefill_feeds(session, np.array(PROMPT[:1])), []
    for _ in range(1 + STEPS):
        cpu = time.process_time()
        session.run([LOGITS], feeds)
        steps.append(time.process_time() - cpu)
    # The first step reads what is mapped.
    connection.send({**found, "step_cpu": median(steps[1:]), **memory_of(os.getpid())})


def run(options: StartOptions) -> dict[str, Any]:
    """Measure what the working folder lacks; return the record."""
    root = Path(options.dir)
    root.mkdir(parents=True, exist_ok=True)
    if not (random := root / "random-1b").exists():
        config = {**LLAMA_1B, "num_hidden_layers": options.layers}
        write_noise(random, config, num_shards=1, seed=0)
    pairs = [(Path(options.model), name) for name in options.precisions.split(",")]
    pairs += [(random, name) for name in options.random_precisions.split(",")]
    labels = [f"{'1B, random' if model == random else '135M'}, {name}" for model, name in pairs]
    served = [
        Served(label, model, name, root / f"{model.name}-{name}")
        for label, (model, name) in zip(labels, pairs, strict=True)
    ]
    kept = Kept(root / "cells.json")
    measure(served, kept, options)
    shown = replace(options, model=Path(options.model).name, dir=root.name)
    return {
        "command": command_line("start", shown),
        "options": asdict(shown),
        "models": labels,
        "ways": list(WAYS),
        "medians": {
            name: {key: median(one[key] for one in cell) for key in cell[0]}
            for name, cell in kept.cells.items()
        },
        "cells": kept.cells,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("start", __doc__, StartOptions, run)


if __name__ == "__main__":
    main()
