"""What each choice of the int4 graph costs a model and saves in time.

`python -m benchmarks.int4 --model MODEL --text A.txt,B.txt --json FILE` builds the graph of a real
model with each of VARIANTS, on one thread, and records its size, its held-out perplexity on each
text, and its speed in interleaved rounds.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import command_line, run_script
from benchmarks.precision import perplexity_of
from converters.to_onnx.writer import build_graph, input_moments, save_graph
from sgate_serve.architecture.family import DOWN
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import end_token, pack, read_documents, read_tokenizer
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import Runner, TokenChunk
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.names import WEIGHTS_FILE
from sgate_serve.onnx_format.precision import PRECISIONS, SENSITIVE, Precision
from sgate_serve.options import option

_INT4 = PRECISIONS["int4"]
_WIDE = replace(_INT4, block=128, row_multiple=2, finer=())
_NARROW = replace(_INT4, block=32, row_multiple=1, finer=())
# By name: the precision, and whether weights are rounded for what they multiply.
VARIANTS: Mapping[str, tuple[Precision, bool]] = {
    "fp32": (PRECISIONS["fp32"], False),
    "int8": (PRECISIONS["int8"], False),
    "4 bits, blocks of 128": (_WIDE, False),
    "blocks of 32": (_NARROW, False),
    "128, finer": (replace(_WIDE, finer=SENSITIVE), False),
    "128, by inputs": (_WIDE, True),
    "32, by inputs": (_NARROW, True),
    "32, by inputs, finer down": (replace(_NARROW, finer=(DOWN,)), True),
    "32, by inputs, finer": (replace(_NARROW, finer=SENSITIVE), True),
    "128, by inputs, finer": (replace(_WIDE, finer=SENSITIVE), True),
}
BASELINE = "4 bits, blocks of 128"
SLOTS, PROMPT = 8, 32


@dataclass(frozen=True)
class Int4Options:
    """The model, its held-out texts, and the amount of measuring."""

    model: str = option("model", "a causal LM with its tokenizer")
    text: str = option("text.txt", "held-out texts, separated by commas")
    blocks: int = option(8, "blocks of each text")
    seq_len: int = option(256, "tokens of a block, and of the timed prompt")
    rounds: int = option(12, "interleaved rounds of the speed comparison")


def run(options: Int4Options) -> dict[str, Any]:
    """Build and measure every variant in a temporary folder; return the record."""
    model, texts = Checkpoint.open(options.model), [Path(text) for text in options.text.split(",")]
    named = replace(options, model=model.folder.name, text=",".join(text.name for text in texts))
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    blocks = {
        text.stem: pack(read_documents(text), tokenizer, end_token(model.config), options.seq_len)[
            : options.blocks
        ]
        for text in texts
    }
    found: dict[str, dict[str, Any]] = {}
    runners: dict[str, Runner] = {}
    with tempfile.TemporaryDirectory(prefix="sgate-int4-") as root:
        with input_moments(model, Path(root), build_graph(model, _WIDE)) as moments:
            for name, (precision, by_inputs) in VARIANTS.items():
                folder = Path(root) / name
                folder.mkdir()
                save_graph(build_graph(model, precision, moments if by_inputs else None), folder)
                sizes = OnnxOptions(slots=SLOTS, max_model_len=options.seq_len + 64, threads=1)
                runners[name] = load_runner(folder, sizes)
                found[name] = {
                    "bytes": (folder / WEIGHTS_FILE).stat().st_size,
                    "perplexity": {
                        text: perplexity_of(runners[name], own) for text, own in blocks.items()
                    },
                }
                print(name, found[name], flush=True)
        times = _times(runners, options)
    return {
        "command": command_line("int4", named),
        "options": asdict(named),
        "precisions": {name: asdict(precision) for name, (precision, _) in VARIANTS.items()},
        "found": found,
        "seconds": times,
        "speedups": _speedups(times),
        "hardware": hardware(),
        "versions": library_versions(),
    }


def _times(runners: Mapping[str, Runner], options: Int4Options) -> dict[str, dict[str, Any]]:
    """Time every runner in turn, forwards and backwards; return all seconds by phase."""
    times: dict[str, dict[str, Any]] = {name: {} for name in runners}
    for number in range(options.rounds):
        for name in list(runners)[:: 1 if number % 2 else -1]:
            for phase, seconds in _round(runners[name], options.seq_len).items():
                times[name].setdefault(phase, []).append(seconds)
    return times


def _round(runner: Runner, seq_len: int) -> dict[str, float]:
    def step(slots: int, length: int) -> Callable[[], object]:
        return lambda: runner.forward([TokenChunk(s, [s + 1] * length) for s in range(slots)])

    def released(measured: float, slots: int) -> float:
        for slot in range(slots):
            runner.release(slot)
        return measured

    found = {"prefill": released(_seconds(step(1, seq_len)), 1)}
    for slots in (1, SLOTS):
        step(slots, PROMPT)()
        seconds = [_seconds(step(slots, 1)) for _ in range(SLOTS)]
        found[f"decode_batch_{slots}"] = released(median(seconds), slots)
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _speedups(times: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Return the median over rounds of the speed relative to BASELINE."""
    return {
        name: {
            phase: median(
                before / own for before, own in zip(times[BASELINE][phase], seconds, strict=True)
            )
            for phase, seconds in phases.items()
        }
        for name, phases in times.items()
    }


def main() -> None:
    run_script("int4", __doc__, Int4Options, run)


if __name__ == "__main__":
    main()
