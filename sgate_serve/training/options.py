"""What a training run is asked for and what it returns. No torch here: the CLI reads the fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sgate_serve.errors import TrainingError
from sgate_serve.options import flag_of

CAUSAL_LM = "causal-lm"
COUPLED, ROW_COL = "coupled", "row-col"
LORA, BIAS, NONE = "lora", "bias", "none"

# What DESIGN.md names and this release does not train yet.
SUPPORTED: Mapping[str, tuple[str, ...]] = {
    "task": (CAUSAL_LM,),
    "gates": (COUPLED, ROW_COL),
    "recovery": (LORA, BIAS, NONE),
}


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class TrainOptions:
    """One run of `sgate train`. Field names are the command's flags, their metadata its help."""

    base: str = field(metadata=_help("dense model folder or hub id"))
    data: Path = field(metadata=_help("text to train on: .txt, .jsonl or .csv with `text`"))
    out: Path = field(metadata=_help("new folder for the gates and metrics.json"))
    target: float = field(
        default=0.3, metadata=_help("fraction of the block weights to remove, above 0 and below 1")
    )
    eval_data: Path | None = field(
        default=None, metadata=_help("held-out data (default: a tenth of the documents)")
    )
    task: str = field(default=CAUSAL_LM, metadata=_help("what the model is for: causal-lm"))
    gates: str = field(
        default=COUPLED,
        metadata=_help(
            "what a gate closes: coupled (MLP units, heads or KV groups) or row-col (rows and "
            "columns of each linear)"
        ),
    )
    steps: int = field(
        default=600, metadata=_help("optimiser steps in all, gates and recovery together")
    )
    gate_share: float = field(
        default=0.5, metadata=_help("share of the steps that trains gates, the rest recovers")
    )
    batch_size: int = field(default=8, metadata=_help("blocks per step"))
    seq_len: int = field(default=256, metadata=_help("tokens per block"))
    gate_learning_rate: float = field(default=0.02, metadata=_help("Adam's rate for gate logits"))
    learning_rate: float = field(
        default=1e-3,
        metadata=_help("Adam's peak rate in the recovery; biases like ten times the default"),
    )
    recovery: str = field(
        default=LORA,
        metadata=_help("what the remaining steps train: lora, bias, or none to skip them"),
    )
    lora_rank: int = field(default=16, metadata=_help("rank of LoRA on every linear of the blocks"))
    eval_blocks: int = field(
        default=128, metadata=_help("blocks of held-out data that are measured, at most")
    )
    save_steps: int = field(default=100, metadata=_help("steps between checkpoints"))
    seed: int = field(
        default=0, metadata=_help("seed of the split, the order of the data and the noise")
    )
    resume: bool = field(
        default=False, metadata=_help("continue from the last checkpoint of an interrupted run")
    )

    def check(self) -> None:
        """Raise TrainingError for a value that cannot be trained with."""
        for name, supported in SUPPORTED.items():
            value = getattr(self, name)
            if value not in supported:
                raise TrainingError(
                    f"--{name} {value}: this release supports {', '.join(supported)}"
                )
        if not 0 < self.target < 1:
            raise TrainingError(
                f"--target {self.target}: give the fraction of block weights to remove, above 0 "
                "and below 1"
            )
        if not 0 < self.gate_share < 1:
            raise TrainingError(f"--gate-share {self.gate_share}: must lie between 0 and 1")
        for name, least in (("steps", 2), ("seq_len", 2), ("batch_size", 1), ("lora_rank", 1)):
            _check_at_least(name, getattr(self, name), least)
        for name in ("eval_blocks", "save_steps"):
            _check_at_least(name, getattr(self, name), 1)
        for name in ("gate_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{flag_of(name)} {getattr(self, name)}: must be positive")

    @property
    def gate_steps(self) -> int:
        """Steps that train gates; at least one, and at least one is left for the recovery."""
        return min(max(round(self.steps * self.gate_share), 1), self.steps - 1)

    @property
    def recovery_steps(self) -> int:
        return 0 if self.recovery == NONE else self.steps - self.gate_steps

    def to_json(self) -> dict[str, Any]:
        """Return every option that shapes the result, so without `resume`, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "resume"}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True)
class TrainResult:
    """Where the gates folder is and what `metrics.json` in it says."""

    out: Path
    metrics: Mapping[str, Any]


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise TrainingError(f"{flag_of(name)} {value}: give a whole number of at least {least}")
