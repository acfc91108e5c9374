"""What a draft model saves: tokens per second with and without one, and how often it is right.

`python -m benchmarks.draft --json FILE --model DENSE --children CHILD,CHILD --texts FOLDER` serves
the dense model in each precision alone, with each child, and with itself in int4. All of them take
turns within a round, forwards and backwards, and answer the same prompts greedily.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from benchmarks.command import command_line, run_script
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.contract import Request, SamplingParams
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.slot_engine import SlotEngine
from sgate_serve.environment import hardware, library_versions
from sgate_serve.loaders.serving import load_slot_engine
from sgate_serve.options import option
from sgate_serve.progress import activity, counted
from sgate_serve.text.tokenization import TextCodec

# The precision of the model → those of the children that draft for it.
PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"fp32": ("int4", "fp32"), "int8": ("int4", "int8"), "int4": ("int4",)}
)
COUNTS = (2, 4)
PROMPT_TOKENS = 64
# Where in each text a prompt is cut.
PLACES = (1 / 3, 2 / 3)
# Prompts that are answered one after the other, and at once.
ONE, TOGETHER = "one", "together"

Prompts = list[tuple[int, ...]]


@dataclass(frozen=True)
class DraftOptions:
    """The models, and the size of the measurement."""

    model: str = option("my-model", "folder of the dense model")
    children: str = option("my-pruned", "folders of models that draft, separated by commas")
    texts: str = option("texts", "folder of .txt files, which the answers continue")
    tokens: int = option(24, "tokens of each answer")
    threads: int = option(1, "CPU threads of the engine")
    rounds: int = option(2, "measured rounds, each forwards and backwards")
    seed: int = option(0, "seed of the intervals")


@dataclass
class Contender:
    """A loaded engine that drafts `count` tokens at a time with the model `draft`, if any.

    `seconds` are those of all prompts, for each way of answering them; `first` are the answers.
    """

    engine: SlotEngine
    draft: str | None = None
    precision: str | None = None
    count: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {ONE: [], TOGETHER: []})
    first: list[list[int]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    def measure(self, prompts: Prompts, tokens: int) -> None:
        """Answer the prompts one after the other, then at once."""
        if self.engine.drafter is not None:
            self.engine.drafter.num_tokens = self.count
        before, started = self.engine.stats(), time.perf_counter()
        found = [answer for prompt in prompts for answer in answers(self.engine, [prompt], tokens)]
        self.seconds[ONE].append(time.perf_counter() - started)
        after = self.engine.stats()
        self.drafted += after.draft_tokens - before.draft_tokens
        self.accepted += after.accepted_tokens - before.accepted_tokens
        self.first = self.first or found
        started = time.perf_counter()
        answers(self.engine, prompts, tokens)
        self.seconds[TOGETHER].append(time.perf_counter() - started)

    def row(self, alone: "Contender", num_tokens: int, seed: int) -> dict[str, Any]:
        """Return the figures of all rounds, and the speed relative to the model `alone`."""
        ways: dict[str, Any] = {}
        for way, seconds in self.seconds.items():
            ratios = [base / own for base, own in zip(alone.seconds[way], seconds, strict=True)]
            ways[way] = {
                "tokens_per_second": num_tokens / median(seconds),
                "speedup": asdict(median_with_interval(ratios, seed)),
                "seconds": seconds,
            }
        return {
            "draft": self.draft,
            "draft_precision": self.precision,
            "draft_tokens": self.count,
            "acceptance": self.accepted / self.drafted if self.drafted else None,
            "same_answers": sum(map(list.__eq__, self.first, alone.first)) / len(self.first),
            **ways,
        }


def answers(engine: SlotEngine, prompts: Prompts, tokens: int) -> list[list[int]]:
    """Answer prompts that arrive together, greedily and past any end; return the tokens of each."""
    found: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    for name, prompt in zip(found, prompts, strict=True):
        engine.add(Request(name, prompt, SamplingParams(tokens, temperature=0.0)))
    while engine.has_work():
        for event in engine.step():
            assert event.token is not None, "there are no stop tokens"
            found[event.request_id].append(event.token)
    engine.forget_prefixes()
    return [*found.values()]


def prompts_of(options: DraftOptions) -> Prompts:
    """Return the tokens at some places of each text."""
    codec = TextCodec.load(Path(options.model))
    assert codec is not None, f"{options.model} has no tokenizer"
    texts = [path.read_text("utf-8") for path in sorted(Path(options.texts).glob("*.txt"))]
    starts = [(text, int(len(text) * place)) for text in texts for place in PLACES]
    parts = [text[start : start + 20 * PROMPT_TOKENS] for text, start in starts]
    return [tuple(codec.tokenizer.encode(part).ids[:PROMPT_TOKENS]) for part in parts]


def contenders(options: DraftOptions, precision: str, slots: int) -> Iterator[Contender]:
    """Load the model in a precision: alone, with each child, and with itself in int4."""
    model = Checkpoint.open(options.model)
    sizes = OnnxOptions(slots, 512, options.threads, precision=precision)
    yield Contender(load_slot_engine("onnx", model, sizes))
    pairs = [*product(options.children.split(","), PRECISIONS[precision])]
    if precision != "int4":
        pairs.append((options.model, "int4"))
    for folder, own in pairs:
        drafted = replace(sizes, draft=folder, draft_precision=own)
        engine = load_slot_engine("onnx", model, drafted)
        for count in COUNTS:
            yield Contender(engine, Path(folder).name, own, count)


def measure(options: DraftOptions, precision: str) -> list[dict[str, Any]]:
    """Measure the model in one precision; return a row for each contender."""
    prompts = prompts_of(options)
    loaded = [*contenders(options, precision, len(prompts))]
    with activity(precision):
        for _ in counted(range(options.rounds), "round"):
            for each in (*loaded, *reversed(loaded)):
                each.measure(prompts, options.tokens)
    num_tokens = len(prompts) * options.tokens
    rows = [each.row(loaded[0], num_tokens, options.seed) for each in loaded]
    for engine in {id(each.engine): each.engine for each in loaded}.values():
        engine.close()
    return rows


def run(options: DraftOptions) -> dict[str, Any]:
    """Measure every precision."""
    named = replace(
        options,
        model=Path(options.model).name,
        children=",".join(Path(folder).name for folder in options.children.split(",")),
        texts=Path(options.texts).name,
    )
    return {
        "command": command_line("draft", named),
        "options": asdict(named),
        "results": {precision: measure(options, precision) for precision in PRECISIONS},
        "hardware": hardware(),
        "versions": library_versions(),
    }


def main() -> None:
    run_script("draft", __doc__, DraftOptions, run)


if __name__ == "__main__":
    main()
