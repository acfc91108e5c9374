"""The options and the result of a training run. Free of torch, as the CLI reads the fields."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import CAUSAL_LM, CLASSIFICATION
from sgate_serve.data.hub import is_dataset_name
from sgate_serve.data.records import Columns
from sgate_serve.errors import TrainingError, did_you_mean
from sgate_serve.options import check_at_least, flag_of, option, required

COUPLED, ROW_COL = "coupled", "row-col"
STRAIGHT_THROUGH, GAUSSIAN, HARD_CONCRETE = "straight-through", "gaussian", "hard-concrete"
GATES, FISHER, WANDA, MAGNITUDE, RANDOM, DENSE = (
    "gates",
    "fisher",
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
    "method": (GATES, FISHER, WANDA, MAGNITUDE, RANDOM, DENSE),
    "gates": (COUPLED, ROW_COL),
    "balance": (JOINT, EVEN),
    "relaxation": (STRAIGHT_THROUGH, GAUSSIAN, HARD_CONCRETE),
    "gates_with": (NONE, BIAS, LORA),
    "recovery": (LORA, BIAS, FULL, HEAD, NONE),
    "precision": (FP32, BF16),
}
# The groups of `sgate train --help`.
DATA, REMOVED = "data", "what is removed"
RECOVERY, RUN = "training and recovery", "the run and its result"
RESEARCH = "for research, as the defaults do better"
MOST_RANK = 64
# Adam's peak learning rate for each tuning; fewer parameters need larger steps.
LEARNING_RATES: Mapping[str, float] = {LORA: 1e-3, BIAS: 1e-2, FULL: 1e-4, HEAD: 1e-2, NONE: 1e-3}


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
    target: float = option(
        0.3,
        "fraction to remove of the weights of attention and MLP linears, above 0 and below 1",
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
        "how the mask is found: fisher, wanda, magnitude and random score the gates once, gates "
        "trains them, dense removes nothing",
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
        "by their Fisher scores, even closes the same share of both (default: joint for coupled "
        "gates with method fisher or gates, else even)",
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
        "what each gate controls: coupled (an MLP unit, head or KV group) or row-col (a row or "
        "column of a linear)",
        group=RESEARCH,
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

    def check(self) -> None:
        """Raise TrainingError for a bad value, or an option without effect."""
        for name, supported in SUPPORTED.items():
            value = getattr(self, name)
            if value not in supported and value != self._default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} {value}: this release supports {', '.join(supported)}"
                    f"{did_you_mean(str(value), supported)}"
                )
        self._check_ranges()
        self._check_together()

    def _check_ranges(self) -> None:
        if not 0 < self.target < 1:
            raise TrainingError(
                f"--target {self.target}: give the fraction of block weights to remove, above 0 "
                f"and below 1{_meant(self.target)}"
            )
        if not 0 < self.gate_share < 1:
            raise TrainingError(
                f"--gate-share {self.gate_share}: must lie between 0 and 1{_meant(self.gate_share)}"
            )
        if not 0 <= self.distill <= 1:
            raise TrainingError(
                f"--distill {self.distill}: must lie between 0 and 1{_meant(self.distill)}"
            )
        for name, least in (("steps", 2), ("seq_len", 2), ("dense_steps", 0)):
            check_at_least(name, getattr(self, name), least, TrainingError)
        if self.lora_rank is not None:
            check_at_least("lora_rank", self.lora_rank, 1, TrainingError)
        for name in ("batch_size", "gate_block", "gradient_accumulation"):
            check_at_least(name, getattr(self, name), 1, TrainingError)
        for name in ("eval_blocks", "save_steps"):
            check_at_least(name, getattr(self, name), 1, TrainingError)
        for name in ("gate_learning_rate", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{flag_of(name)} {value}: must be positive")

    def _check_together(self) -> None:
        """Raise TrainingError for an option that another one makes ineffective."""
        if self.method != GATES:
            for name in ("relaxation", "gates_with", "kurtosis"):
                if getattr(self, name) != self._default_of(name):
                    raise TrainingError(
                        f"{flag_of(name)} is for trained gates: add --method gates, or drop it"
                    )
        if self.balance == JOINT and not self._has_costs:
            raise TrainingError(
                "--balance joint compares Fisher scores of coupled gates: use --method fisher or "
                "gates, or drop it"
            )
        if self.task == CAUSAL_LM and self.recovery == HEAD:
            raise TrainingError("--recovery head trains a classifier's head; a causal LM has none")
        if self.no_control and self.method == DENSE:
            raise TrainingError("--no-control: --method dense is its own control; drop one of them")
        if self.no_control and self.recovery == NONE:
            raise TrainingError("--no-control: without recovery there is no control; drop it")
        self._check_mask()
        self._check_granularity()
        self._check_eval_data()
        self._check_columns()

    def _check_mask(self) -> None:
        """Raise TrainingError for an option that a given mask makes ineffective."""
        for name in ("target", "method", "gates", "balance", "gate_block", "dense_steps"):
            if self.mask is not None and getattr(self, name) != self._default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} has no effect on a given mask: drop it, or --mask"
                )

    def _check_granularity(self) -> None:
        """Raise TrainingError for an option of the other granularity."""
        if self.gates != ROW_COL and self.kurtosis:
            raise TrainingError("--kurtosis is for row-col gates: add --gates row-col, or drop it")
        for name in ("gate_block", "no_refit"):
            if self.gates == ROW_COL and getattr(self, name) != self._default_of(name):
                raise TrainingError(
                    f"{flag_of(name)} is for coupled gates: drop it, or drop --gates row-col"
                )

    def _check_eval_data(self) -> None:
        """Raise TrainingError for data to measure elsewhere whose names are the same."""
        named: dict[str, Path] = {}
        for path in self.eval_data[1:]:
            other = named.setdefault(path.stem, path)
            if other is not path:
                raise TrainingError(
                    f"--eval-data {other} and {path} would both be reported as {path.stem}; rename "
                    "or drop one"
                )

    def _check_columns(self) -> None:
        """Raise TrainingError for a column that the task or the files do not have."""
        if self.task == CAUSAL_LM:
            for name in ("text_pair_column", "label_column"):
                if getattr(self, name) != self._default_of(name):
                    raise TrainingError(
                        f"{flag_of(name)} is for --task {CLASSIFICATION}: text alone trains a "
                        "causal LM"
                    )
        is_text = all(path.suffix == ".txt" for path in (self.data, *self.eval_data))
        if is_text and self.text_column != self._default_of("text_column"):
            raise TrainingError("--text-column is for .jsonl, .csv and datasets; .txt has none")

    def _default_of(self, name: str) -> Any:
        return type(self).__dataclass_fields__[name].default

    @property
    def _has_costs(self) -> bool:
        return self.gates == COUPLED and self.method in (FISHER, GATES)

    @property
    def refits(self) -> bool:
        """Say whether weights are refitted after the cut, as they are where units close."""
        return self.gates == COUPLED and self.method != DENSE and not self.no_refit

    @property
    def is_joint(self) -> bool:
        """Say whether scores decide how much of the target attention takes."""
        return self.balance == JOINT or (self.balance is None and self._has_costs)

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


def _meant(value: float) -> str:
    """Return a question about the fraction that a percentage was meant to be."""
    return f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
