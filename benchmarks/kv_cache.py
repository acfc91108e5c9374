"""What an int8 KV cache costs a model and saves: perplexity, memory, speed.

`python -m benchmarks.kv_cache --model MODEL --text A.txt,B.txt --json FILE` builds graphs of a real
decoder with keys and values in floats and in int8. It records the held-out perplexity of both in
fp32, and for every precision of the weights how fast they read a text and decode after it, at
several lengths, interleaved in one run.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command_line, run_script
from benchmarks.precision import perplexity_of
from converters.to_onnx import write_onnx
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.documents import end_token, pack, read_documents, read_tokenizer
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.kv_cache import bytes_per_token
from sgate_serve.engines.onnx.runner import OnnxRunner
from sgate_serve.engines.runner import TokenChunk
from sgate_serve.environment import hardware, library_versions
from sgate_serve.onnx_format.precision import FP32, PRECISIONS
from sgate_serve.options import option

FLOATS, INTEGERS = "floats", "int8"
BATCHES, CHUNK = (1, 8), 128
# Rounds of reading a text, which takes far longer than a decode step.
READS = 2


@dataclass(frozen=True)
class KvCacheOptions:
    """The model, its held-out texts, and the amount of measuring."""

    model: str = option("model", "a causal LM with its tokenizer")
    text: str = option("text.txt", "held-out texts, separated by commas")
    blocks: int = option(4, "blocks of each text, spread over it")
    seq_len: int = option(512, "tokens of a block")
    precisions: str = option("fp32,int8", "precisions of the weights, separated by commas")
    contexts: str = option("256,2048", "tokens before those that are decoded")
    steps: int = option(8, "decode steps in one timed run")
    rounds: int = option(9, "interleaved rounds of the decode steps")
    threads: int = option(1, "threads of the engine")
    seed: int = option(0, "seed of the token ids and of the intervals")


def run(options: KvCacheOptions) -> dict[str, Any]:
    """Build and measure the graphs in a temporary folder; return the record."""
    texts = [Path(text) for text in options.text.split(",")]
    named = replace(
        options, model=Path(options.model).name, text=",".join(text.name for text in texts)
    )
    model = Checkpoint.open(options.model)
    speeds, perplexity = {}, {}
    with tempfile.TemporaryDirectory(prefix="sgate-kv-cache-") as root:
        for name in options.precisions.split(","):
            folders = {kind: Path(root) / f"{name}-{kind}" for kind in (FLOATS, INTEGERS)}
            for kind, folder in folders.items():
                write_onnx(model, folder, replace(PRECISIONS[name], int8_cache=kind == INTEGERS))
            if name == FP32:
                perplexity = perplexities(model, folders, options, texts)
            speeds[name] = speed(folders, options)
            print(name, perplexity, speeds[name]["speedups"], flush=True)
    return {
        "command": command_line("kv_cache", named),
        "options": asdict(named),
        "perplexity": perplexity,
        "speed": speeds,
        "hardware": hardware(),
        "versions": library_versions(),
    }


def perplexities(
    model: Checkpoint, folders: Mapping[str, Path], options: KvCacheOptions, texts: Sequence[Path]
) -> dict[str, dict[str, float]]:
    """Return cache → text → perplexity."""
    tokenizer = read_tokenizer(model.folder / "tokenizer.json", model.spec.vocab_size)
    end = end_token(model.config)
    packed = {}
    for text in texts:
        blocks = pack(read_documents(text), tokenizer, end, options.seq_len)
        packed[text.stem] = blocks[np.linspace(0, len(blocks) - 1, options.blocks).astype(int)]
    sizes = OnnxOptions(slots=1, max_model_len=options.seq_len, threads=options.threads)
    return {
        kind: {
            text: perplexity_of(runner, blocks)
            for runner in [load_runner(folder, sizes)]
            for text, blocks in packed.items()
        }
        for kind, folder in folders.items()
    }


def speed(folders: Mapping[str, Path], options: KvCacheOptions) -> dict[str, Any]:
    """Return the seconds of both caches by phase, and the speed of int8 over floats."""
    contexts = [int(length) for length in options.contexts.split(",")]
    sizes = OnnxOptions(
        slots=max(BATCHES),
        max_model_len=max(contexts) + options.steps,
        threads=options.threads,
        prefill_chunk=CHUNK,
    )
    runners = {kind: load_runner(folder, sizes) for kind, folder in folders.items()}
    times: dict[str, dict[str, list[float]]] = {}
    for length in contexts:
        for number in range(READS):
            for kind in list(runners)[:: 1 if number % 2 else -1]:
                own = times.setdefault(f"read_{length}", {name: [] for name in runners})
                own[kind].append(read_seconds(runners[kind], length, options.seed))
        for number in range(options.rounds):
            for kind in list(runners)[:: 1 if number % 2 else -1]:
                for batch in BATCHES:
                    phase = f"decode_{length}_batch_{batch}"
                    own = times.setdefault(phase, {name: [] for name in runners})
                    own[kind].append(decode_seconds(runners[kind], length, batch, options.steps))
    return {
        "bytes_per_token": {kind: bytes_per_token(own.session) for kind, own in runners.items()},
        "seconds": times,
        "speedups": {
            phase: asdict(
                median_with_interval(
                    [one / two for one, two in zip(own[FLOATS], own[INTEGERS], strict=True)],
                    options.seed,
                )
            )
            for phase, own in times.items()
        },
    }


def read_seconds(runner: OnnxRunner, length: int, seed: int) -> float:
    """Let every slot hold the same text of `length` tokens; return the time to read it once."""
    for slot in range(runner.num_slots):
        runner.release(slot)
    tokens = np.random.default_rng(seed).integers(0, runner.vocab_size, length).tolist()
    started = time.perf_counter()
    for start in range(0, length, CHUNK):
        runner.forward([TokenChunk(0, tokens[start : start + CHUNK], 1)])
    seconds = time.perf_counter() - started
    for slot in range(1, runner.num_slots):
        runner.share(0, slot, length)
    return seconds


def decode_seconds(runner: OnnxRunner, length: int, batch: int, steps: int) -> float:
    """Return the time of a step that adds a token to each of `batch` slots; cut them off again."""
    chunks = [TokenChunk(slot, [slot], 1) for slot in range(batch)]
    started = time.perf_counter()
    for _ in range(steps):
        runner.forward(chunks)
    seconds = (time.perf_counter() - started) / steps
    for slot in range(batch):
        runner.share(slot, slot, length)
    return seconds


def main() -> None:
    run_script("kv_cache", __doc__, KvCacheOptions, run)


if __name__ == "__main__":
    main()
