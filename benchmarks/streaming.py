"""Speed and memory of converting a checkpoint, compared with copying its files.

`python -m benchmarks.streaming --json FILE [--gib 4]` writes a checkpoint of noise into a temporary
folder. Every round copies its files, converts it with gates, and converts it without gates (a scan
for zeros that finds none). Each conversion runs the real command in its own process, start
included; the copy is `shutil.copyfile` in this process. `sgate plan` runs on the headers of a 70B
model.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.synthetic import (
    LLAMA_70B,
    config_of_size,
    describe,
    write_gates,
    write_headers_only,
    write_noise,
)
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

Config = Mapping[str, Any]

NUM_SHARDS = 5
COPY, GATES, SCAN, PLAN = "copy", "convert_with_gates", "convert_by_scan", "plan_70b"
# Limits that conversion should stay within; kept in the record.
GOALS = {
    "convert_peak_rss_bytes": 2**30,
    "convert_speed_of_copy": 0.5,
    "plan_seconds": 10,
    "plan_peak_rss_bytes": 500 * 10**6,
}
# As the core installation: without torch and transformers, which conversion asks where they are.
COMMAND = """
import sys
for name in ("torch", "transformers"):
    sys.modules.setdefault(name, None)
from sgate_serve.cli import main
from sgate_serve.environment import peak_rss_bytes
status = main(sys.argv[1:])
print(peak_rss_bytes())
sys.exit(status or ("torch was imported" if sys.modules["torch"] else 0))
"""


@dataclass(frozen=True)
class StreamingOptions:
    """The size of the checkpoint, the share of closed gates, and the rounds."""

    gib: float = option(4.0, "size of the checkpoint in GiB")
    closed: float = option(0.3, "share of MLP units and KV groups that are closed")
    rounds: int = option(5, "interleaved rounds")
    seed: int = option(0, "seed of weights and gates")
    free: float = option(0.7, "GiB of memory left free before a run; files are cached in the rest")


@dataclass(frozen=True)
class Usage:
    """Wall and CPU seconds of one run, and peak resident bytes if it had its own process."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Inputs:
    """The folders that the measured commands read and write."""

    dense: Path
    gates: Path
    large: Path
    large_gates: Path
    holes: Path
    out: Path

    @classmethod
    def within(cls, folder: Path) -> "Inputs":
        return cls(*(folder / field.name.replace("_", "-") for field in fields(cls)))

    def commands(self) -> dict[str, list[str]]:
        dense, out = str(self.dense), str(self.out)
        large, plan = str(self.large), str(self.out / "plan.json")
        return {
            GATES: ["convert", dense, "--gates", str(self.gates), "--out", out],
            SCAN: ["convert", dense, "--out", out],
            PLAN: ["plan", large, "--gates", str(self.large_gates), "--out", plan],
        }


def make_inputs(inputs: Inputs, options: StreamingOptions, dense: Config, large: Config) -> None:
    """Write both checkpoints (noise, and headers only), their gates, and holes to fill memory."""
    write_noise(inputs.dense, dense, NUM_SHARDS, options.seed)
    write_gates(inputs.gates, Checkpoint.open(inputs.dense), options.closed, options.seed)
    write_headers_only(inputs.large, large)
    write_gates(inputs.large_gates, Checkpoint.open(inputs.large), options.closed, options.seed)
    with inputs.holes.open("wb") as file:
        file.truncate(hardware()["memory_bytes"])


def run_command(arguments: list[str]) -> Usage:
    """Run one `sgate` command in its own process.

    Raises RuntimeError with the end of its output if it fails or imports torch.
    """
    command = [sys.executable, "-c", COMMAND, *arguments]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"sgate {' '.join(arguments)} failed:\n{text[-2000:]}")
    # Not `usage.ru_maxrss`: on Linux a child inherits that of its parent.
    return Usage(seconds, usage.ru_utime + usage.ru_stime, int(text.split()[-1]))


def copy_files(source: Path, target: Path) -> Usage:
    """Copy every file of a folder in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for file in sorted(source.iterdir()):
        shutil.copyfile(file, target / file.name)
    return Usage(time.perf_counter() - start, time.process_time() - cpu_start)


def fill_memory(inputs: Inputs, free_bytes: int) -> None:
    """Settle the disk, cache the input, then cache holes until `free_bytes` of memory are left.

    This is the stable state of a machine that has been running for a long time. A virtual machine
    returns free memory to its host and fetches it again several times as slowly as it copies into
    it. Without this, a run that began to write a second later than the copy looked half as fast.
    """
    os.sync()
    buffer = bytearray(2**24)
    for file in inputs.dense.iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    with inputs.holes.open("rb", buffering=0) as stream:
        while _free_memory() > free_bytes and stream.readinto(buffer):
            pass


def measure(inputs: Inputs, options: StreamingOptions) -> dict[str, list[Usage]]:
    """Run everything once per round; return name → one value per round.

    The output of a run is deleted before the next one.
    """
    runs: dict[str, Callable[[], Usage]] = {
        COPY: partial(copy_files, inputs.dense, inputs.out),
        **{name: partial(run_command, args) for name, args in inputs.commands().items()},
    }
    usages: dict[str, list[Usage]] = {name: [] for name in runs}
    # The first round is a warm-up and is not kept.
    turns = list(product(range(options.rounds + 1), runs.items()))
    with activity("measuring"):
        for number, (name, start) in counted(turns, "run"):
            fill_memory(inputs, round(options.free * 2**30))
            inputs.out.mkdir()
            usage = start()
            shutil.rmtree(inputs.out)
            if number:
                usages[name].append(usage)
    return usages


def record_of(
    usages: Mapping[str, list[Usage]], inputs: Inputs, options: StreamingOptions
) -> dict[str, Any]:
    """Return the record: medians, intervals and single runs, options, hardware and versions."""
    dense, large = Checkpoint.open(inputs.dense), Checkpoint.open(inputs.large)
    return {
        "command": command_line("streaming", options),
        "options": asdict(options),
        "checkpoint": describe(dense) | {"shards": len(list(inputs.dense.glob("*.safetensors")))},
        "plan_checkpoint": describe(large),
        "goals": GOALS,
        "speed_of_copy": {
            name: _speed_of_copy(usages[COPY], usages[name], options.seed) for name in (GATES, SCAN)
        },
        "results": {name: _summary(runs, options.seed) for name, runs in usages.items()},
        "hardware": hardware(),
        "versions": library_versions(),
    }


def run(options: StreamingOptions, dense: Config, large: Config) -> dict[str, Any]:
    """Measure checkpoints of these configs in a temporary folder; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-streaming-") as folder:
        inputs = Inputs.within(Path(folder))
        # In its own process: a child's peak memory starts at that of its parent (execve(2) keeps
        # the maximum), so this process must stay small.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_inputs, args=(inputs, options, dense, large)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError("the checkpoints could not be written; see the error above")
        return record_of(measure(inputs, options), inputs, options)


def main() -> None:
    def measured(options: StreamingOptions) -> dict[str, Any]:
        return run(options, config_of_size(round(options.gib * 2**30)), LLAMA_70B)

    run_script("streaming", __doc__, StreamingOptions, measured)


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _speed_of_copy(copies: list[Usage], runs: list[Usage], seed: int) -> dict[str, float]:
    """Return the speed as a share of the copy's speed on the same input, over the rounds."""
    ratios = [copy.seconds / run.seconds for copy, run in zip(copies, runs, strict=True)]
    return asdict(median_with_interval(ratios, seed))


def _summary(runs: list[Usage], seed: int) -> dict[str, Any]:
    peaks = [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None]
    return {
        "seconds": asdict(median_with_interval([run.seconds for run in runs], seed)),
        "cpu_seconds": asdict(median_with_interval([run.cpu_seconds for run in runs], seed)),
        **({"peak_rss_bytes": max(peaks)} if peaks else {}),
        "runs": [asdict(run) for run in runs],
    }


if __name__ == "__main__":
    main()
