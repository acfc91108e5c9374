"""Cost of a grammar: per decode step, per token without the model, and once when it is compiled.

`python -m benchmarks.structured_output --json FILE --model FOLDER` times decode steps of one onnx
engine, with rows that follow a JSON schema and with rows that are free. Both take turns within a
round, forwards and backwards.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.command import command_line, run_script
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Grammar, Request, SamplingParams
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.environment import hardware, library_versions
from sgate_serve.loaders.serving import load_slot_engine
from sgate_serve.options import option
from sgate_serve.progress import activity, counted
from sgate_serve.text.grammars import GrammarCompiler, GrammarText
from sgate_serve.text.tokenization import TextCodec

BATCHES = (1, 8)
PROMPT_TOKENS = 8
NUM_COMPILED = 20
# A list that no answer comes to the end of, so that every step has a mask.
PEOPLE = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
SOURCE = GrammarText("json", json.dumps(PEOPLE), "schema", compact=True)


@dataclass(frozen=True)
class GrammarOptions:
    """The model and the number of timed steps."""

    model: str = option("sgate-demo/pruned", "folder of a causal language model with a tokenizer")
    precision: str = option("int8", "precision of the weights")
    threads: int = option(1, "CPU threads of the engine")
    steps: int = option(128, "decode steps that are timed")
    rounds: int = option(7, "measured rounds, after one that warms up")
    seed: int = option(0, "seed of prompts, draws and intervals")


def decode(
    engine: SlotEngine, batch: int, options: GrammarOptions, grammar: Grammar | None
) -> tuple[float, list[int]]:
    """Return the seconds of a decode step, and the tokens of the first row."""
    rng = np.random.default_rng(options.seed)
    for row in range(batch):
        prompt = tuple(rng.integers(100, 1000, PROMPT_TOKENS).tolist())
        sampling = SamplingParams(options.steps + 1, seed=options.seed + row, grammar=grammar)
        engine.add(Request(str(row), prompt, sampling))
    events = [*engine.step()]  # reads the prompts
    started = time.perf_counter()
    while engine.has_work():
        events += engine.step()
    seconds = (time.perf_counter() - started) / options.steps
    own = [event.token for event in events if event.request_id == "0"]
    return seconds, [token for token in own if token is not None]


def measure(
    engine: SlotEngine, batch: int, options: GrammarOptions, grammar: Grammar
) -> dict[str, Any]:
    """Return step times with and without the grammar, and by how much it is slower."""
    free: list[list[float]] = []
    bound: list[list[float]] = []
    with activity(f"batch {batch}"):
        for number in counted(range(options.rounds + 1), "round"):
            free.append([])
            bound.append([])
            turns = ((free, None), (bound, grammar), (bound, grammar), (free, None))
            for times, own in turns if number % 2 else reversed(turns):
                times[-1].append(decode(engine, batch, options, own)[0])
    own_free, own_bound = ([sum(pair) / 2 for pair in times[1:]] for times in (free, bound))
    shares = [with_it / alone - 1 for with_it, alone in zip(own_bound, own_free, strict=True)]
    return {
        "free_step_seconds": median(own_free),
        "grammar_step_seconds": median(own_bound),
        "overhead": asdict(median_with_interval(shares, options.seed)),
        "seconds": {"free": own_free, "grammar": own_bound},
    }


def mask_seconds(grammar: Grammar, tokens: Sequence[int]) -> Iterator[float]:
    """Yield the seconds from each token of a text to the mask of the next one."""
    state = grammar.start()
    for token in tokens:
        started = time.perf_counter()
        state.accept(token)
        yield time.perf_counter() - started


def compile_seconds(compiler: GrammarCompiler) -> float:
    started = time.perf_counter()
    compiler.compile(SOURCE)
    return time.perf_counter() - started


def run(options: GrammarOptions) -> dict[str, Any]:
    """Load the engine, compile the grammar and measure both."""
    model = Checkpoint.open(Path(options.model))
    codec = TextCodec.load(model.folder)
    assert codec is not None, f"{options.model} has no tokenizer"
    sizes = OnnxOptions(
        slots=max(BATCHES), threads=options.threads, max_model_len=512, precision=options.precision
    )
    engine = load_slot_engine("onnx", model, sizes)
    compiler = GrammarCompiler(codec, engine.vocab_size)
    first = compile_seconds(compiler)
    compiled = [compile_seconds(compiler) for _ in range(NUM_COMPILED)]
    grammar = compiler.compile(SOURCE)
    steps = {str(batch): measure(engine, batch, options, grammar) for batch in BATCHES}
    _, tokens = decode(engine, 1, options, grammar)
    # Of a new grammar, whose automaton no text has filled yet.
    masks = [*mask_seconds(compiler.compile(SOURCE), tokens)]
    named = replace(options, model=model.folder.name)
    return {
        "command": command_line("structured_output", named),
        "options": asdict(named),
        "vocab_size": engine.vocab_size,
        "results": {
            "batch": steps,
            "mask_seconds": {"median": median(masks), "max": max(masks), "count": len(masks)},
            "compile_seconds": {"first": first, "median": median(compiled)},
        },
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("structured_output", __doc__, GrammarOptions, run)


if __name__ == "__main__":
    main()
