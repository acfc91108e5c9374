"""One engine in its own process: load a model, then time runs on request.

`python -m benchmarks.contenders.worker KIND FOLDER BATCH MODEL_LEN THREADS [ARGUMENTS]` writes one
JSON line when it is ready. For each JSON line that it reads, which names a method, it writes a line
with the seconds that the method took. The output of libraries goes to stderr.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

# Kind → a function of the folder, batch, model length, threads and arguments that returns an
# object with the methods of sgate_serve.engines.timed.TimedDecoder. Only the requested one is
# imported, because each interpreter has the packages of its own engine only.
KINDS = {
    "onnx": "benchmarks.contenders.ours:load_onnx",
    "vllm": "benchmarks.contenders.ours:load_vllm",
    "llama.cpp": "benchmarks.contenders.llama_cpp:load",
    "genai": "benchmarks.contenders.genai:load",
    "openvino": "benchmarks.contenders.openvino:load",
}


def main() -> None:
    kind, folder, *sizes = sys.argv[1:5]
    threads, arguments = int(sys.argv[5]), sys.argv[6:]
    answers = _own_stdout()
    module, _, function = KINDS[kind].partition(":")
    load = getattr(importlib.import_module(module), function)
    timed = load(Path(folder), *map(int, sizes), threads, tuple(arguments))
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        _answer(answers, {"seconds": _seconds(timed, json.loads(line))})
    timed.close()


def _own_stdout() -> TextIO:
    """Return the original stdout, and redirect all other output to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(file: TextIO, value: dict[str, Any]) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def _seconds(timed: Any, order: dict[str, Any]) -> float:
    generator = np.random.default_rng(order["seed"])
    sizes: Sequence[int] = order["sizes"]
    return float(getattr(timed, order["method"])(*sizes, generator))


if __name__ == "__main__":
    main()
