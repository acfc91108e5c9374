"""One phase of training on transformers' Trainer: its settings, checkpoints, log and resumption.

A run has up to four phases (dense, control, gates, recovery), each with a checkpoint folder of its
own. A complete phase is loaded; an interrupted one continues from its last checkpoint. Checkpoints
hold only trained tensors, not the frozen base.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from sgate_serve.errors import TrainingError
from sgate_serve.progress import Activity, activity
from sgate_serve.training.phases.distillation import Distillation
from sgate_serve.training.precision import best_device, precision_of
from sgate_serve.training.train_options import BF16, TrainOptions

LOGS_PER_PHASE = 20
TOKENS_PER_SECOND = "tokens_per_second"
LOGGED = (
    "loss",
    TOKENS_PER_SECOND,
    "goal_mlp",
    "goal_attention",
    "expected_mlp",
    "expected_attention",
    "closed_mlp",
    "closed_attention",
)
NO_MEMORY = "can't allocate memory"


@dataclass(frozen=True)
class Phase:
    """The settings of one phase, where its checkpoints go, and its teacher if there is one."""

    folder: Path
    steps: int
    batch_size: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    save_steps: int
    seed: int
    bf16: bool = False
    gradient_checkpointing: bool = False
    gradient_accumulation: int = 1
    report_to: str = "none"
    distillation: Distillation | None = None

    @classmethod
    def of(cls, options: TrainOptions, folder: Path, steps: int, learning_rate: float) -> "Phase":
        """Return a phase that warms up over a twentieth of its steps and decays to a rate of 0."""
        return cls(
            folder=folder,
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=learning_rate,
            schedule="cosine",
            warmup_steps=steps // 20,
            save_steps=options.save_steps,
            seed=options.seed,
            bf16=precision_of(options) == BF16,
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_accumulation=options.gradient_accumulation,
            report_to=options.report_to,
        )

    @property
    def name(self) -> str:
        return self.folder.name

    def constant(self) -> "Phase":
        """Return the same phase with a constant learning rate."""
        return replace(self, schedule="constant", warmup_steps=0)

    def arguments(self, *, is_ragged: bool = False) -> TrainingArguments:
        """Return the Trainer's arguments; ragged data is batched by similar length."""
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation,
            gradient_checkpointing=self.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=self.bf16,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.schedule,
            warmup_steps=self.warmup_steps,
            weight_decay=0.0,
            logging_steps=max(1, self.steps // LOGS_PER_PHASE),
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=self.save_steps,
            save_total_limit=1,
            seed=self.seed,
            data_seed=self.seed,
            train_sampling_strategy="group_by_length" if is_ragged else "random",
            use_cpu=best_device().type == "cpu",
            dataloader_num_workers=0,
            remove_unused_columns=False,
            report_to=self.report_to,
            # Every trained parameter is part of every forward: masks multiply by 0, nothing skips.
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
        )
        # The Trainer would replicate the model on every GPU, but gates are hooks of one replica.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments


class PartlyFrozen(nn.Module):
    """A partly frozen model whose state dict holds only the trainable tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable it on the model, with gradients for its inputs, which frozen embeddings lack."""
        model: Any = self.model
        model.gradient_checkpointing_enable(**options)
        model.enable_input_require_grads()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load exactly the tensors that `state_dict()` saves, whatever `strict` says."""
        expected, found = set(self.state_dict()), set(state_dict)
        assert expected == found, f"checkpoint of another run: {sorted(expected ^ found)[:3]}"
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        result.missing_keys.clear()
        return result


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, tensor in module.named_parameters(remove_duplicate=False):
        if not tensor.requires_grad:
            del state[prefix + name]


class PhaseTrainer(Trainer):
    """The Trainer with a distillation loss; it stops when the loss is not finite.

    Its log holds the tokens that all processes take in a second, padding included.
    """

    def __init__(self, *, distillation: Distillation | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation = distillation
        # Losses are means, so the Trainer must average them over accumulated batches.
        self.model_accepts_loss_kwargs = False
        self._tokens, self._counted_from = 0, 0.0

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not self._tokens:
            self._counted_from = time.monotonic()
        self._tokens += inputs["input_ids"].numel() * self.args.world_size
        # Inside another autocast, even a disabled one, the Trainer's own would go on with bf16
        # copies of trained weights as they were in the first step.
        torch.clear_autocast_cache()
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss
        if self.distillation is not None:
            # Only the model's own forward is under the Trainer's autocast.
            with self.accelerator.autocast():
                loss = self.distillation.loss(loss, outputs.logits, inputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower "
                "--learning-rate or --gate-learning-rate, and check the data for broken records"
            )
        if "loss" in logs and self._tokens:
            # The loss is known, so a GPU has done all that was counted.
            seconds = time.monotonic() - self._counted_from
            logs = {**logs, TOKENS_PER_SECOND: round(self._tokens / seconds, 1)}
            self._tokens = 0
        super().log(logs, *args, **kwargs)


class _Reporting(TrainerCallback):
    """Reports steps and the last loss where the Trainer would print dictionaries."""

    def __init__(self, shown: Activity) -> None:
        self.shown = shown

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.shown.report(state.global_step, args.max_steps, "step")

    on_step_end = on_train_begin

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any
    ) -> None:
        if "loss" in logs:
            values = {"loss": logs["loss"]}
            if TOKENS_PER_SECOND in logs:
                values["tokens/s"] = logs[TOKENS_PER_SECOND]
            self.shown.report(state.global_step, args.max_steps, "step", **values)


def run(trainer: Trainer, name: str) -> None:
    """Train to the last step, resuming from the last checkpoint in the phase's folder.

    `name` is shown. Raises TrainingError if there is too little memory.
    """
    last = last_checkpoint(Path(trainer.args.output_dir))
    if last is not None and _step_of(last) == trainer.args.max_steps:
        # From a checkpoint of the last step the Trainer would take one step too many.
        with activity(f"{name}, which was done before"):
            load_model(trainer.model, last / SAFE_WEIGHTS_NAME)
        return
    with activity(name) as shown:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Reporting(shown))
        _train_from(trainer, last)


def _train_from(trainer: Trainer, last: Path | None) -> None:
    # Only the model's own forward is under the Trainer's autocast.
    outer = torch.autocast(trainer.args.device.type, enabled=False)
    try:
        with outer:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: BaseException) -> TrainingError:
    return TrainingError(
        "out of memory: lower --batch-size (and raise --gradient-accumulation to keep the step the "
        f"same) or --seq-len, or add --gradient-checkpointing ({str(error).splitlines()[0]:.120})"
    )


def log_of(folder: Path) -> list[dict[str, float]]:
    """Return the log of the phase in `folder`: the step and the LOGGED values of each entry."""
    last = last_checkpoint(folder)
    if last is None:
        return []
    history = json.loads((last / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    return [
        {name: entry[name] for name in ("step", *LOGGED) if name in entry}
        for entry in history
        if "loss" in entry
    ]


def speed_of(log: Sequence[Mapping[str, float]]) -> float | None:
    """Return the median tokens per second of a phase's log, or None if it holds none."""
    speeds = [entry[TOKENS_PER_SECOND] for entry in log if TOKENS_PER_SECOND in entry]
    return median(speeds) if speeds else None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`; the Trainer writes its state file last."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
