"""An engine without slots, which therefore has its own class for timing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from sgate_serve.engines.table import ENGINES, EngineRow
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision

STUB = "stub"
ROW = EngineRow(
    generation="nowhere:NoSlots",
    reads="model",
    when="in tests",
    modules=(),
    timed="tests.bench.stub_engine:StubTimed",
)


@dataclass
class StubTimed:
    """A `TimedDecoder` that runs nothing and reports times from `SECONDS_PER_TOKEN`."""

    folder: Path
    batch: int
    max_model_len: int
    threads: int | None
    arguments: tuple[str, ...]
    calls: list[tuple[int, ...]] = field(default_factory=list)
    num_closed: int = 0
    name: str = STUB
    version: str = "0"
    precision: Precision = PRECISIONS[FP32]

    @classmethod
    def load(
        cls, folder: Path, batch: int, model_len: int, threads: int | None, arguments: Sequence[str]
    ) -> "StubTimed":
        """Record the model in `LOADED`; `--fail N` fails at the N-th, `--shorter N` subtracts N."""
        words = dict(zip(arguments[::2], arguments[1::2], strict=True))
        if len(LOADED) + 1 == int(words.get("--fail", 0)):
            raise MemoryError("no room")
        length = model_len - int(words.get("--shorter", 0))
        timed = cls(folder, batch, length, threads, tuple(arguments))
        LOADED.append(timed)
        return timed

    def decode_seconds(
        self, batch: int, context_tokens: int, steps: int, generator: np.random.Generator
    ) -> float:
        self.calls.append((batch, context_tokens, steps))
        return batch * steps * self._seconds_per_token

    def prefill_seconds(self, num_tokens: int, generator: np.random.Generator) -> float:
        self.calls.append((num_tokens,))
        return num_tokens * self._seconds_per_token

    def generate_seconds(
        self, requests: int, input_tokens: int, output_tokens: int, generator: np.random.Generator
    ) -> float:
        self.calls.append((requests, input_tokens, output_tokens))
        return requests * (input_tokens + output_tokens) * self._seconds_per_token

    def close(self) -> None:
        self.num_closed += 1

    @property
    def _seconds_per_token(self) -> float:
        return SECONDS_PER_TOKEN.get(self.folder.name, 1.0)


LOADED: list[StubTimed] = []
# Folder name → seconds; other models take 1.
SECONDS_PER_TOKEN = {"out": 0.5, "other": 0.25}


def install(monkeypatch: pytest.MonkeyPatch) -> list[StubTimed]:
    """Add the stub to the table of engines; return the list in which its loads are recorded."""
    engines = MappingProxyType({**ENGINES, STUB: ROW})
    for module in ("engines.table", "loaders.serving", "loaders.timing"):
        monkeypatch.setattr(f"sgate_serve.{module}.ENGINES", engines)
    LOADED.clear()
    return LOADED
