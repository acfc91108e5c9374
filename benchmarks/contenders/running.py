"""A contender and its process, which benchmarks/contenders/worker.py runs."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgate_serve.environment import cpu_ids, num_cpus

ROOT = Path(__file__).parent.parent.parent
# The threads of the previous engine keep waiting for work, up to 0.2 s in Intel's OpenMP.
# Forbidding that would cost llama.cpp more than half of its speed at batch 1.
SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class Contender:
    """One engine with one model, and the command that starts its worker."""

    python: str
    kind: str
    folder: Path
    arguments: tuple[str, ...] = ()

    def command(self, batch: int, model_len: int) -> list[str]:
        sizes = map(str, (batch, model_len, num_cpus()))
        worker = [self.python, "-m", "benchmarks.contenders.worker", self.kind]
        return [*worker, str(self.folder), *sizes, *self.arguments]


class Worker:
    """A running contender: a `TimedDecoder` (engines/timed.py) in a process of its own.

    It has all CPUs, and room for `batch` rows of `model_len` tokens.
    """

    def __init__(self, contender: Contender, batch: int, model_len: int) -> None:
        self.max_model_len = model_len
        cpus = cpu_ids()
        environment = os.environ | {
            "OMP_NUM_THREADS": str(len(cpus)),
            "VLLM_CPU_OMP_THREADS_BIND": f"{cpus[0]}-{cpus[-1]}",
            "PYTHONPATH": str(ROOT),
        }
        self._name = f"{contender.kind} on {contender.folder}"
        self._process = subprocess.Popen(
            contender.command(batch, model_len),
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
