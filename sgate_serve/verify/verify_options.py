"""The arguments of a verification, and which of them are refused before anything is read."""

import math
from dataclasses import dataclass
from pathlib import Path

from sgate_serve.errors import EngineError
from sgate_serve.options import check_at_least, option
from sgate_serve.verify.rounding import FAIL_ABOVE, WARN_ABOVE


@dataclass(frozen=True)
class VerifyOptions:
    """The models to compare, the engine, and the prompts."""

    checkpoint: str
    out: str
    gates: Path | None = option(None, "gates folder of any kind, or its safetensors file")
    engine: str = option(
        "auto", "auto, torch, onnx or vllm; auto is onnx if OUT holds a graph, else torch"
    )
    num_prompts: int = option(4, "random prompts to compare, in addition to a long one")
    prompt_tokens: int = option(48, "token ids in each random prompt")
    seed: int = option(0, "seed of the prompts")
    gates_kind: str | None = option(
        None, "what --gates is: sgate, finegates or peft (default: detected)"
    )
    data: Path | None = option(
        None, "text, .txt, .jsonl or .csv: compare outputs on it, and measure rounding there"
    )
    max_divergence: float | None = option(
        None,
        "for rounded weights: fail above this mean KL divergence, in nats per token or text "
        f"(default: fail above {FAIL_ABOVE:g}, warn above {WARN_ABOVE:g})",
    )

    keep: float | None = option(
        None, "the size of OUT that keeps this fraction (default: the largest)"
    )

    def check(self) -> None:
        """Raise EngineError for a number of prompts or tokens below 1, or a limit that is none."""
        for name in ("num_prompts", "prompt_tokens"):
            check_at_least(name, getattr(self, name), 1, EngineError)
        limit = self.max_divergence
        if limit is not None and not 0 <= limit < math.inf:
            raise EngineError(f"--max-divergence {limit:g}: give a number of nats, at least 0")
