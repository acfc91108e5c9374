"""Speed of our embedded engine, dense and pruned, compared with other engines on one CPU.

`python -m benchmarks.engine_speed --dir DIR --json FILE` creates a random Llama-shaped model,
closes coupled gates for 30%, and measures decoding and prefill. Each engine runs in its own
process, and one of them computes at a time; each round asks all of them forwards, then backwards.
Contenders are grouped by the width of their weights, and a group is loaded together. Our dense int4
model is in every group, so that groups can be compared. Groups that DIR has results of are not
measured again.

`--llama_python` is an interpreter with llama-cpp-python, gguf, ml_dtypes and safetensors,
`--genai_python` one with onnxruntime-genai and the packages of its model builder, and
`--openvino_python` one with openvino-genai and optimum-intel; vLLM runs in the current interpreter.
An engine without an interpreter is left out. In vLLM the pruned model is measured too, with our
plugin. benchmarks/contenders lists the tested versions.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.contenders.running import ROOT, Contender, Worker
from benchmarks.contenders.tokenizer import write_tokenizer
from benchmarks.engine_tables import GROUPS, OURS, inside
from benchmarks.masks import coupled_values, write_pruned
from benchmarks.shapes import LlamaShape
from benchmarks.synthetic import write_noise
from converters.convert import ConvertOptions, convert
from sgate_serve.bench.rounds import measure_rounds, ratios, round_sums
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.bench.workload import (
    PREFILL,
    Measure,
    Workload,
    is_decode,
    phases,
    tokens_per_run,
)
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import hardware, library_versions
from sgate_serve.options import option
from sgate_serve.progress import activity, counted

REFERENCE = f"{OURS}int4 dense"
PRUNED = {"p30": 0.3}
W8A8 = "w8a8"
PRUNED_W8A8 = f"p30-{W8A8}"
OPENVINO = {"int4": "int4", "int8": "int8", "float": "fp16"}


@dataclass(frozen=True)
class EngineOptions(LlamaShape):
    """The shape, the amount of measuring, and the interpreters of other engines."""

    batches: str = option("1,8,32", "batch sizes of decoding, separated by commas")
    prompts: str = option("128,512,2048", "tokens of the timed prompts")
    llama_python: str = option("", "interpreter with llama-cpp-python and gguf")
    genai_python: str = option("", "interpreter with onnxruntime-genai and its model builder")
    openvino_python: str = option("", "interpreter with openvino-genai and optimum-intel")
    vllm: int = option(1, "1 also measures vLLM, in the current interpreter")
    groups: str = option("int4,int8,float", "groups to measure, separated by commas")
    dir: str = option("engines", "working folder; a started one is continued")

    @property
    def prompt_lengths(self) -> list[int]:
        return [int(length) for length in self.prompts.split(",")]

    @property
    def workload(self) -> Workload:
        return Workload(
            rounds=self.rounds,
            decode_steps=self.decode_steps,
            context_tokens=64,
            prefill_tokens=max(self.prompt_lengths),
            batches=tuple(int(batch) for batch in self.batches.split(",")),
            seed=self.seed,
        )

    @property
    def phases(self) -> "dict[str, Phase]":
        """Each batch size of decoding, and each length of a prompt."""
        found = {
            name: Phase(measure, tokens_per_run(self.workload, name))
            for name, measure in phases(self.workload).items()
            if is_decode(name)
        }
        for length in self.prompt_lengths:
            prompt = phases(replace(self.workload, prefill_tokens=length))[PREFILL]
            found[f"{PREFILL}_{length}"] = Phase(prompt, length)
        return found

    @property
    def model_len(self) -> int:
        """Tokens of a row; some engines append a token of their own to a prompt."""
        return self.workload.model_len + 8


@dataclass(frozen=True)
class Phase:
    """One timed run, and the tokens that it processes."""

    measure: Measure
    num_tokens: int


def make_models(root: Path, options: EngineOptions) -> dict[str, Any]:
    """Write the dense and the pruned models, and the dense one in the other engines' formats.

    Returns the figures of the pruned ones.
    """
    dense = root / "dense"
    write_noise(dense, options.config, 1, options.seed)
    write_tokenizer(dense, options.vocab_size)
    base = Checkpoint.open(dense)
    figures = {
        name: write_pruned(base, name, coupled_values(base.spec, fraction, options.seed))
        for name, fraction in PRUNED.items()
    }
    if options.vllm:
        for folder, gates in ((W8A8, None), (PRUNED_W8A8, root / "p30-gates")):
            convert(ConvertOptions(str(dense), root / folder, gates, precision=INT8))
    if options.llama_python:
        _run_module(options.llama_python, "benchmarks.contenders.gguf_files", dense, root)
    if options.genai_python:
        builder = ("onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")
        folders = ("-i", dense, "-o", root / "genai", "-c", root / "genai-cache")
        _run_module(options.genai_python, *builder, *folders)
    if options.openvino_python:
        export = ("optimum.commands.optimum_cli", "export", "openvino", "--model", dense)
        for width in OPENVINO.values():
            words = ["--task", "text-generation-with-past", "--weight-format", width]
            if width == "int4":  # smaller groups where the default of 128 does not divide a width
                words += ["--group-size-fallback", "adjust"]
            _run_module(options.openvino_python, *export, *words, root / f"openvino-{width}")
    return figures


def _run_module(python: str, *words: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([python, "-m", *map(str, words)], env=environment, check=True)


def contenders(root: Path, options: EngineOptions) -> dict[str, dict[str, Contender]]:
    """Return group → name → contender, the reference first."""
    ours = {
        precision: {
            f"{OURS}{precision} {model}": Contender(
                sys.executable, "onnx", root / model, ("--precision", precision)
            )
            for model in ("dense", *PRUNED)
        }
        for precision in GROUPS.values()
    }
    others: dict[str, dict[str, Contender]] = {group: {} for group in GROUPS}
    if options.llama_python:
        for group, name in (("int4", "q4_0"), ("int8", "q8_0")):
            contender = Contender(options.llama_python, "llama.cpp", root / name)
            others[group][f"llama.cpp {name.upper()}"] = contender
    if options.genai_python:
        genai = Contender(options.genai_python, "genai", root / "genai")
        others["int4"]["onnxruntime-genai int4"] = genai
    if options.openvino_python:
        for group, width in OPENVINO.items():
            folder = root / f"openvino-{width}"
            name = "OpenVINO bf16" if group == "float" else f"OpenVINO {width}"
            others[group][name] = Contender(options.openvino_python, "openvino", folder)
    if options.vllm:
        for group, name, dense, pruned in (
            ("int8", "vLLM W8A8", W8A8, PRUNED_W8A8),
            ("float", "vLLM bf16", "dense", "p30"),
        ):
            others[group][name] = Contender(sys.executable, "vllm", root / dense)
            others[group][inside(name)] = Contender(sys.executable, "vllm", root / pruned)
    first = {REFERENCE: ours["int4"][REFERENCE]}
    return {
        group: {**first, **others[group], **ours[precision]}
        for group, precision in GROUPS.items()
        if group in options.groups.split(",")
    }


@contextmanager
def started(group: Mapping[str, Contender], options: EngineOptions) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers = {}
        with activity("loading"):
            for name, contender in counted(group.items(), "engine"):
                workers[name] = Worker(contender, max(options.workload.batches), options.model_len)
                stack.callback(workers[name].close)
        yield workers


def measure(workers: Mapping[str, Worker], options: EngineOptions) -> dict[str, Any]:
    """Return phase → name → tokens per second and speed over the reference, one sample a round."""
    record: dict[str, Any] = {}
    timed = options.phases
    measures = {name: phase.measure for name, phase in timed.items()}
    for phase, times in measure_rounds(measures, workers, options.rounds).items():
        rounds = {name: round_sums(seconds) for name, seconds in times.items()}
        record[phase] = {
            name: {
                "tokens_per_second": timed[phase].num_tokens / median(times[name]),
                "over_reference": asdict(
                    median_with_interval(ratios(rounds[REFERENCE], own), options.seed)
                ),
                "seconds": times[name],
            }
            for name, own in rounds.items()
        }
    return record


def run(options: EngineOptions) -> dict[str, Any]:
    """Create the models in the working folder and measure them; return the record."""
    root = Path(options.dir)
    os.environ["SGATE_CACHE"] = str(root / "cache")
    shown = replace(options, llama_python="", genai_python="", openvino_python="", dir="")
    models = replace(shown, groups="")
    begun = _kept(root / "options.json", partial(asdict, models))
    if begun != asdict(models):
        raise SystemExit(f"{root} was started with other options; give another --dir")
    figures = _kept(root / "figures.json", partial(make_models, root, options))
    results = {
        name: _kept(root / f"{name}.json", partial(_measured, group, options))
        for name, group in contenders(root, options).items()
    }
    return {
        "command": command_line("engine_speed", shown),
        "options": asdict(shown),
        "reference": REFERENCE,
        "figures": figures,
        "results": results,
        "hardware": hardware(),
        "versions": library_versions() | _versions_of(options),
    }


def _measured(group: Mapping[str, Contender], options: EngineOptions) -> dict[str, Any]:
    with started(group, options) as workers:
        return measure(workers, options)


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what the file holds; if there is none, make it first."""
    if not path.exists():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _versions_of(options: EngineOptions) -> dict[str, str]:
    """Return the versions of the engines in the other interpreters."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    packages = {
        "llama-cpp-python": options.llama_python,
        "onnxruntime-genai": options.genai_python,
        "openvino-genai": options.openvino_python,
    }
    return {
        name: subprocess.check_output([python, "-c", code, name], text=True).strip()
        for name, python in packages.items()
        if python
    }


def main() -> None:
    run_script("engine_speed", __doc__, EngineOptions, run)


if __name__ == "__main__":
    main()
