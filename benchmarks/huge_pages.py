"""What huge pages save: the onnx engine with glibc's `malloc` in them, and without.

`python -m benchmarks.huge_pages --json FILE` loads the random model of `sgate_serve.demo.shape` in
two processes, one of which has GLIBC_TUNABLES set, and times them in turn, forwards and backwards.
"""

import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.shapes import DemoShape
from converters.to_onnx import write_onnx
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.demo.shape import write_shape
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import Runner, TokenChunk
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.precision import PRECISIONS
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

# Phase → streams, tokens of each in a call, calls.
PHASES = {"decode_batch_1": (1, 1, 12), "decode_batch_8": (8, 1, 6), "prefill": (1, 128, 1)}
PROMPT = 16
SETTING, TUNABLES = Path("/sys/kernel/mm/transparent_hugepage/enabled"), "GLIBC_TUNABLES"


@dataclass(frozen=True)
class HugePagesOptions(DemoShape):
    """The precisions, and the amount of measuring."""

    precisions: str = option("fp32,int8,int4", "precisions of the graph, separated by commas")
    rounds: int = option(15, "rounds of each precision")


class Process:
    """A model in a process of its own, which times a phase when it is asked to."""

    def __init__(self, folder: Path, *, uses_huge_pages: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, folder))
        # glibc reads it when a program starts.
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1" if uses_huge_pages else ""
        self._process.start()
        del os.environ[TUNABLES]
        self.load_seconds: float = self._connection.recv()

    def seconds(self, phase: str) -> float:
        self._connection.send(phase)
        found: float = self._connection.recv()
        return found

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


def serve(connection: Connection, folder: Path) -> None:
    """Load the graph, then answer each phase with its seconds per call, until None comes."""
    started = time.perf_counter()
    loaded = load_runner(folder, OnnxOptions(slots=8, max_model_len=PROMPT + 256))
    connection.send(time.perf_counter() - started)
    while (phase := connection.recv()) is not None:
        connection.send(seconds_of(loaded, *PHASES[phase]))


def seconds_of(loaded: Runner, streams: int, tokens: int, calls: int) -> float:
    for slot in range(streams):
        loaded.release(slot)
        loaded.forward([TokenChunk(slot, [slot] * PROMPT, 1)])
    chunks = [TokenChunk(slot, [slot] * tokens, 1) for slot in range(streams)]
    started = time.perf_counter()
    for _ in range(calls):
        loaded.forward(chunks)
    return (time.perf_counter() - started) / calls


def compared(folder: Path, options: HugePagesOptions) -> dict[str, Any]:
    """Return the seconds of both processes, phase by phase, and the speedups."""
    both = {name: Process(folder, uses_huge_pages=name == "huge") for name in ("small", "huge")}
    times: dict[str, dict[str, list[float]]] = {
        phase: {name: [] for name in both} for phase in PHASES
    }
    for number in counted(range(options.rounds), "round"):
        for phase, own in times.items():
            for name in list(both)[:: 1 if number % 2 else -1]:
                own[name].append(both[name].seconds(phase))
    loads = {name: process.load_seconds for name, process in both.items()}
    for process in both.values():
        process.close()
    return {
        "load_seconds": loads,
        "seconds": times,
        "median_seconds": {p: {n: median(s) for n, s in own.items()} for p, own in times.items()},
        "speedups": {
            phase: asdict(
                median_with_interval(
                    [one / other for one, other in zip(own["small"], own["huge"], strict=True)],
                    options.seed,
                )
            )
            for phase, own in times.items()
        },
    }


def run(options: HugePagesOptions) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="sgate-pages-") as root, activity("measuring"):
        write_shape(Path(root) / "model", options.sizes)
        model = Checkpoint.open(Path(root) / "model")
        for name in options.precisions.split(","):
            write_onnx(model, Path(root) / name, PRECISIONS[name])
            found[name] = compared(Path(root) / name, options)
    return {
        "command": command_line("huge_pages", options),
        "options": asdict(options),
        "results": found,
        "huge_pages_enabled": SETTING.read_text("ascii").strip(),
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("huge_pages", __doc__, HugePagesOptions, run)


if __name__ == "__main__":
    main()
