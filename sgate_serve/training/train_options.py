"""The options and the result of a training run. Free of torch, as the CLI reads the fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.data.hub import is_dataset_name
from sgate_serve.data.records import Columns
from sgate_serve.options import option, required
from sgate_serve.plan.block_times import DECODE, ENCODE, MIX, PREFILL, BlockTimes

COUPLED, EXPERTS, ROW_COL = "coupled", "experts", "row-col"
STRAIGHT_THROUGH, GAUSSIAN, HARD_CONCRETE = "straight-through", "gaussian", "hard-concrete"
GATES, FISHER, REAP, WANDA, MAGNITUDE, RANDOM, DENSE = (
    "gates",
    "fisher",
    "reap",
    "wanda",
    "magnitude",
    "random",
    "dense",
)
JOINT, EVEN = "joint", "even"
LORA, BIAS, FULL, HEAD, NONE = "lora", "bias", "full", "head", "none"
FP32, BF16 = "fp32", "bf16"

SUPPORTED: Mapping[str, tuple[str, ...]] = {
    "task": (CAUSAL_LM, CLASSIFICATION),
    "method": (GATES, FISHER, REAP, WANDA, MAGNITUDE, RANDOM, DENSE),
    "gates": (COUPLED, EXPERTS, ROW_COL),
    "balance": (JOINT, EVEN),
    "relaxation": (STRAIGHT_THROUGH, GAUSSIAN, HARD_CONCRETE),
    "gates_with": (NONE, BIAS, LORA),
    "recovery": (LORA, BIAS, FULL, HEAD, NONE),
    "precision": (FP32, BF16),
    "target_phase": (DECODE, PREFILL, MIX),
}
DEFAULT_TARGET = 0.3
# The groups of `sgate train --help`.
DATA, REMOVED = "data", "what is removed"
RECOVERY, RUN = "training and recovery", "the run and its result"
RESEARCH = "for research, as the defaults do better"
MOST_RANK = 64
# Adam's peak learning rate for each tuning; fewer parameters need larger steps.
LEARNING_RATES: Mapping[str, float] = {LORA: 1e-3, BIAS: 1e-2, FULL: 1e-4, HEAD: 1e-2, NONE: 1e-3}


# Returns the times of a model's blocks on an engine, in a precision.
BlockTimer = Callable[[Checkpoint, str, str], BlockTimes]


@dataclass(frozen=True)
class TrainOptions:
    """The options of `sgate train`: field names are its flags, their metadata its help."""

    base: str = required("dense model folder or hub id")
    data: Path = required(
        "training data: .txt, .jsonl or .csv with `text`; for classification .jsonl or .csv with "
        "`text`, `label` and optionally `text_pair`; or a name of the datasets library, such as "
        "glue/sst2",
        group=DATA,
    )
    out: Path = required(
        "folder to write, new or empty: gates, metrics.json and training.png", group=RUN
    )
    target: float | None = option(
        None,
        "fraction to remove of the weights of attention and MLP linears, above 0 and below 1 "
        f"(default: {DEFAULT_TARGET})",
        group=REMOVED,
    )
    target_speedup: float | None = option(
        None,
        "instead of --target: remove what makes the model this many times as fast on this machine, "
        "such as 1.4, by the times of its blocks, which are measured once",
        group=REMOVED,
    )
    target_engine: str = option(
        "onnx", "engine of the --target-speedup: onnx or torch", group=REMOVED
    )
    target_precision: str = option(
        "int8",
        "precision in which the --target-speedup is served: int8, int4, fp16 or fp32",
        group=REMOVED,
    )
    target_phase: str | None = option(
        None,
        "what becomes faster by the --target-speedup: decode (at batch 1), prefill (of 128 "
        "tokens), or a mix of such a prefill and 128 decode steps (default: decode; a classifier "
        "has one phase)",
        group=REMOVED,
    )
    eval_data: tuple[Path, ...] = option(
        (),
        "held-out data (default: a tenth of the training data, or a dataset's validation split); "
        "given again, it names more data to measure, reported under the name of its file",
        group=DATA,
    )
    text_column: str = option("text", "column of the text in .jsonl, .csv or a dataset", group=DATA)
    text_pair_column: str = option(
        "text_pair", "column of the second text of each pair, for classification", group=DATA
    )
    label_column: str = option("label", "column of the label, for classification", group=DATA)
    task: str = option(CAUSAL_LM, "task of the model: causal-lm or classification", group=DATA)
    method: str = option(
        FISHER,
        "how the mask is found: fisher, wanda, magnitude and random score the gates once, so does "
        "reap whole experts, gates trains them, dense removes nothing",
        group=REMOVED,
    )
    mask: Path | None = option(
        None,
        "recover a mask that exists instead of looking for one: whatever `sgate convert --gates` "
        "takes; weights that belong to it are its start",
        group=REMOVED,
    )
    balance: str | None = option(
        None,
        "how MLP units and attention groups share the target: joint closes those that cost least "
        "by their Fisher scores, even closes the same share of both; so do the layers whose whole "
        "experts close (default: joint with method fisher, and for coupled gates with gates, else "
        "even)",
        group=REMOVED,
    )
    gate_block: int = option(
        1,
        "close MLP units in blocks of this many, so that widths are multiples of it",
        group=REMOVED,
    )
    steps: int = option(600, "optimizer steps of gates and recovery together", group=RECOVERY)
    dense_steps: int | None = option(
        None,
        "LoRA steps on the dense model before anything is removed (default: --steps if a head must "
        "be added, else 0); the trained base is then OUT/base",
        group=RECOVERY,
    )
    batch_size: int = option(8, "blocks or examples per step", group=RECOVERY)
    seq_len: int = option(
        256, "tokens in each block of text, or the most tokens of an example", group=DATA
    )
    learning_rate: float | None = option(
        None,
        "Adam's peak learning rate for everything else (default: depends on what is trained, 1e-3 "
        "for lora)",
        group=RECOVERY,
    )
    recovery: str = option(
        LORA, "what is trained under the final mask: lora, bias, full, head or none", group=RECOVERY
    )
    lora_rank: int | None = option(
        None,
        "rank of LoRA, which is on every linear of the blocks (default: an eighth of the hidden "
        "size, at most 64)",
        group=RECOVERY,
    )
    distill: float = option(
        0.0, "weight of distillation from the dense model in the loss, from 0 to 1", group=RECOVERY
    )
    no_control: bool = option(
        False,
        "leave out the dense control: the dense model, trained as long as the recovery trains",
        group=RUN,
    )
    eval_blocks: int = option(128, "blocks of each held-out text to measure, at most", group=DATA)
    save_steps: int = option(100, "steps between checkpoints", group=RUN)
    seed: int = option(
        0, "seed of the data split, a new head, the data order and the noise", group=RUN
    )
    precision: str | None = option(
        None,
        "what is computed in: fp32 or bf16; weights and their updates are fp32 in either (default: "
        "bf16 where the GPU or CPU multiplies it in hardware, else fp32)",
        group=RECOVERY,
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations to save memory", group=RECOVERY
    )
    gradient_accumulation: int = option(1, "batches per optimizer step", group=RECOVERY)
    report_to: str = option(
        "none", "logger of transformers' Trainer, such as tensorboard or wandb", group=RUN
    )
    resume: bool = option(
        False, "continue from the last checkpoint of an interrupted run", group=RUN
    )
    dry_run: bool = option(
        False, "show what would be gated and trained, and write nothing", group=RUN
    )
    gates: str = option(
        COUPLED,
        "what each gate controls: coupled (an MLP unit, head or KV group), experts (a whole expert "
        "of a mixture) or row-col (a row or column of a linear; for research)",
        group=REMOVED,
    )
    no_refit: bool = option(
        False,
        "leave the weights that read the units as they are, instead of refitting them to the units "
        "that stay",
        group=RESEARCH,
    )
    gate_share: float = option(
        0.5, "share of the steps that trains gates; the rest is for the recovery", group=RESEARCH
    )
    gate_learning_rate: float = option(0.02, "Adam's learning rate for gate logits", group=RESEARCH)
    relaxation: str | None = option(
        None,
        "how trained gates are relaxed: straight-through, gaussian or hard-concrete (default: "
        "straight-through for coupled gates, gaussian for row-col)",
        group=RESEARCH,
    )
    gates_with: str | None = option(
        None,
        "what is trained together with the gates: none, bias or lora (default: the --recovery if "
        "it is one of these and gates are coupled, else none)",
        group=RESEARCH,
    )
    kurtosis: bool = option(
        False, "weigh the pressure on row-col gates by kurtosis, as the papers do", group=RESEARCH
    )

    @property
    def has_costs(self) -> bool:
        """Say whether scores estimate costs that add up and compare across kinds of block."""
        return self.gates != ROW_COL and self.method in (FISHER, GATES)

    @property
    def weight_target(self) -> float:
        """The fraction of the block weights to remove, unless seconds are the target."""
        return DEFAULT_TARGET if self.target is None else self.target

    @property
    def speed_phase(self) -> str:
        """The phase that --target-speedup is about."""
        return self.target_phase or (DECODE if self.task == CAUSAL_LM else ENCODE)

    @property
    def refits(self) -> bool:
        """Say whether weights are refitted after the cut, as they are where units close."""
        return self.gates == COUPLED and self.method != DENSE and not self.no_refit

    @property
    def is_joint(self) -> bool:
        """Say whether scores decide how much of the target attention takes."""
        return self.balance == JOINT or (self.balance is None and self.has_costs)

    @property
    def gate_relaxation(self) -> str:
        """The relaxation of trained gates; row and column gates act as scales, so not rounded."""
        return self.relaxation or (STRAIGHT_THROUGH if self.gates == COUPLED else GAUSSIAN)

    @property
    def gate_tuning(self) -> str:
        """The tuning of the gate phase; row and column gates train alone, as in the papers."""
        is_default = self.gates == COUPLED and self.recovery in SUPPORTED["gates_with"]
        return self.gates_with or (self.recovery if is_default else NONE)

    @property
    def gate_steps(self) -> int:
        """Steps that train gates: at least one, and leaving at least one for the recovery."""
        if self.method != GATES:
            return 0
        return min(max(round(self.steps * self.gate_share), 1), self.steps - 1)

    @property
    def recovery_steps(self) -> int:
        """Steps under the final mask: all steps if no gates are trained."""
        return 0 if self.recovery == NONE else self.steps - self.gate_steps

    @property
    def held_out_source(self) -> Path | None:
        """Source of held-out data; None for a part of the training data."""
        if self.eval_data:
            return self.eval_data[0]
        return self.data if is_dataset_name(self.data) else None

    @property
    def elsewhere(self) -> Mapping[str, Path]:
        """More data to measure on, by the names that it is reported under."""
        return {path.stem: path for path in self.eval_data[1:]}

    @property
    def has_control(self) -> bool:
        """Say whether the dense model is also trained, as long as the recovery trains."""
        return not self.no_control and self.method != DENSE and self.recovery != NONE

    @property
    def columns(self) -> Columns:
        return Columns(self.text_column, self.text_pair_column, self.label_column)

    def rank_for(self, hidden_size: int) -> int:
        """Return the rank of LoRA in a model of this width."""
        return self.lora_rank or max(min(hidden_size // 8, MOST_RANK), 1)

    def rate_of(self, tuning: str) -> float:
        """Return the peak learning rate of a tuning."""
        return self.learning_rate or LEARNING_RATES[tuning]

    def to_json(self) -> dict[str, Any]:
        """Return the options that shape the result (`resume` does not) as JSON values."""
        left_out = ("resume", "dry_run", "report_to")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: _json_of(value) for name, value in values.items()}


@dataclass(frozen=True)
class TrainResult:
    """The path of the gates folder, and the content of its `metrics.json`."""

    out: Path
    metrics: Mapping[str, Any]


def _json_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_of(each) for each in value]
    return str(value) if isinstance(value, Path) else value
