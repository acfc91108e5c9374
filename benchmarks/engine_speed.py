"""Speed of our embedded engine, dense and pruned, compared with other engines on one CPU.

`python -m benchmarks.engine_speed --json FILE` creates a random Llama-shaped model, closes coupled
gates for 20, 30 and 40%, and measures decoding and prefill. Each engine runs in its own process,
and one of them computes at a time; each round asks all of them forwards, then backwards. Contenders
are grouped by the width of their weights, and a group is loaded together. Our dense int4 model is
in every group, so that groups can be compared.

`--llama_python` is an interpreter with llama-cpp-python, gguf, ml_dtypes and safetensors;
`--genai_python` is one with onnxruntime-genai and the packages of its model builder; vLLM runs in
the current interpreter. An engine without an interpreter is left out. benchmarks/contenders lists
the tested versions.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.command import command_line, run_script
from benchmarks.contenders.tokenizer import write_tokenizer
from benchmarks.masks import coupled_values, write_pruned
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from benchmarks.vllm_speed import FRACTIONS
from sgate_serve.bench.rounds import measure_rounds, ratios, round_sums
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.bench.workload import Workload, phases, tokens_per_run
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import cpu_ids, hardware, library_versions, num_cpus
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

REFERENCE = "ours int4 dense"
# The threads of the previous engine keep waiting for work, up to 0.2 s in Intel's OpenMP.
# Forbidding that would cost llama.cpp more than half of its speed at batch 1.
SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class EngineOptions(LlamaShape):
    """The shape, the amount of measuring, and the interpreters of other engines."""

    llama_python: str = option("", "interpreter with llama-cpp-python and gguf")
    genai_python: str = option("", "interpreter with onnxruntime-genai and its model builder")
    vllm: int = option(1, "1 also measures vLLM, in the current interpreter")
    groups: str = option("int4,int8,float", "groups to measure, separated by commas")

    @property
    def workload(self) -> Workload:
        return Workload(
            rounds=self.rounds,
            decode_steps=self.decode_steps,
            context_tokens=64,
            prefill_tokens=self.prefill_tokens,
            seed=self.seed,
        )

    @property
    def model_len(self) -> int:
        """Tokens of a row; some engines append a token of their own to a prompt."""
        return self.workload.model_len + 8


@dataclass(frozen=True)
class Contender:
    """One engine with one model, and the command that starts its worker."""

    python: str
    kind: str
    folder: Path
    arguments: tuple[str, ...] = ()

    def command(self, options: EngineOptions, model_len: int) -> list[str]:
        batch = max(options.workload.batches)
        sizes = map(str, (batch, model_len, num_cpus()))
        worker = [self.python, "-m", "benchmarks.contenders.worker", self.kind]
        return [*worker, str(self.folder), *sizes, *self.arguments]


class Worker:
    """A running contender: a `TimedDecoder` (engines/timed.py) in a process of its own."""

    def __init__(
        self, contender: Contender, options: EngineOptions, model_len: int | None = None
    ) -> None:
        self.max_model_len = model_len or options.model_len
        cpus = cpu_ids()
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(cpus)),
            "VLLM_CPU_OMP_THREADS_BIND": f"{cpus[0]}-{cpus[-1]}",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        self._name = f"{contender.kind} on {contender.folder}"
        self._process = subprocess.Popen(
            contender.command(options, self.max_model_len),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        return self._seconds("decode_seconds", (batch, context_tokens, steps), generator)

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        return self._seconds("prefill_seconds", (num_tokens,), generator)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _seconds(self, method: str, sizes: Sequence[int], generator: np.random.Generator) -> float:
        assert self._process.stdin is not None
        time.sleep(SETTLE_SECONDS)
        order = {"method": method, "sizes": sizes, "seed": int(generator.integers(2**31))}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._process.wait()}")
        return json.loads(line)


def make_models(root: Path, options: EngineOptions) -> dict[str, Any]:
    """Write the dense and the pruned models, and the dense one in the other engines' formats."""
    write_noise(root / "dense", options.config, 1, options.seed)
    write_tokenizer(root / "dense", options.vocab_size)
    base = Checkpoint.open(root / "dense")
    figures = {
        name: write_pruned(base, name, coupled_values(base.spec, fraction, options.seed))
        for name, fraction in FRACTIONS.items()
    }
    if options.llama_python:
        _run_module(options.llama_python, "benchmarks.contenders.gguf_files", root / "dense", root)
    if options.genai_python:
        builder = "onnxruntime_genai.models.builder"
        flags: list[str | Path] = [
            "-i",
            root / "dense",
            "-o",
            root / "genai",
            "-p",
            "int4",
            "-e",
            "cpu",
        ]
        _run_module(options.genai_python, builder, *flags, "-c", root / "genai-cache")
    return figures


def _run_module(python: str, module: str, *arguments: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([python, "-m", module, *map(str, arguments)], env=environment, check=True)


def contenders(root: Path, options: EngineOptions) -> dict[str, dict[str, Contender]]:
    """Return group → name → contender, the reference first."""
    ours = {
        precision: {
            f"ours {precision} {model}": Contender(
                sys.executable, "onnx", root / model, ("--precision", precision)
            )
            for model in ("dense", *FRACTIONS)
        }
        for precision in ("int4", "int8", "fp32")
    }
    others: dict[str, dict[str, Contender]] = {"int4": {}, "int8": {}, "float": {}}
    if options.llama_python:
        for group, name in (("int4", "q4_0"), ("int8", "q8_0")):
            contender = Contender(options.llama_python, "llama.cpp", root / name)
            others[group][f"llama.cpp {name.upper()}"] = contender
    if options.genai_python:
        genai = Contender(options.genai_python, "genai", root / "genai")
        others["int4"]["onnxruntime-genai int4"] = genai
    if options.vllm:
        others["float"]["vLLM bf16"] = Contender(sys.executable, "vllm", root / "dense")
    first = {REFERENCE: ours["int4"][REFERENCE]}
    pairs = (("int4", "int4"), ("int8", "int8"), ("float", "fp32"))
    return {
        group: {**first, **others[group], **ours[precision]}
        for group, precision in pairs
        if group in options.groups.split(",")
    }


@contextmanager
def started(group: Mapping[str, Contender], options: EngineOptions) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers = {}
        with activity("loading"):
            for name, contender in counted(group.items(), "engine"):
                workers[name] = Worker(contender, options)
                stack.callback(workers[name].close)
        yield workers


def measure(workers: Mapping[str, Worker], workload: Workload) -> dict[str, Any]:
    """Return phase → name → tokens per second and speed over the reference, one sample a round."""
    record: dict[str, Any] = {}
    for phase, times in measure_rounds(phases(workload), workers, workload.rounds).items():
        rounds = {name: round_sums(seconds) for name, seconds in times.items()}
        num_tokens = tokens_per_run(workload, phase)
        record[phase] = {
            name: {
                "tokens_per_second": num_tokens / median(times[name]),
                "over_reference": asdict(
                    median_with_interval(ratios(rounds[REFERENCE], own), workload.seed)
                ),
                "seconds": times[name],
            }
            for name, own in rounds.items()
        }
    return record


def run(options: EngineOptions) -> dict[str, Any]:
    """Create the models in a temporary folder and measure them; return the record."""
    with tempfile.TemporaryDirectory(prefix="sgate-engines-") as folder:
        root = Path(folder)
        os.environ["SGATE_CACHE"] = str(root / "cache")
        figures = make_models(root, options)
        results = {}
        for name, group in contenders(root, options).items():
            with started(group, options) as workers:
                results[name] = measure(workers, options.workload)
    shown = replace(options, llama_python="", genai_python="")
    return {
        "command": command_line("engine_speed", shown),
        "options": asdict(shown),
        "reference": REFERENCE,
        "figures": figures,
        "results": results,
        "hardware": hardware(),
        "versions": library_versions() | _versions_of(options),
    }


def _versions_of(options: EngineOptions) -> dict[str, str]:
    """Return the versions of the engines in the other interpreters."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    packages = {"llama-cpp-python": options.llama_python, "onnxruntime-genai": options.genai_python}
    return {
        name: subprocess.check_output([python, "-c", code, name], text=True).strip()
        for name, python in packages.items()
        if python
    }


def main() -> None:
    run_script("engine_speed", __doc__, EngineOptions, run)


if __name__ == "__main__":
    main()
