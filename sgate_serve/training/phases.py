"""One phase of training on transformers' Trainer: its arguments, its checkpoints, its resume.

A run has up to three phases, each with its own folder of checkpoints: dense, gates and recovery. A
phase that is complete is loaded, one that was interrupted continues from its last checkpoint.
Checkpoints hold what is trained, not the frozen base.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.plan import Masks
from sgate_serve.training.distillation import Distillation
from sgate_serve.training.masking import masked_by
from sgate_serve.training.parts import Part, trained_part
from sgate_serve.training.samples import Data
from sgate_serve.training.train_options import TrainOptions

LOGS_PER_PHASE = 20
LOGGED = (
    "loss",
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
    """What one call of the Trainer is to do."""

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
        """Return a phase that warms up over a twentieth of its steps and ends at rate 0."""
        return cls(
            folder=folder,
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=learning_rate,
            schedule="cosine",
            warmup_steps=steps // 20,
            save_steps=options.save_steps,
            seed=options.seed,
            bf16=options.bf16,
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_accumulation=options.gradient_accumulation,
            report_to=options.report_to,
        )

    def constant(self) -> "Phase":
        """Return the same phase at a constant learning rate."""
        return replace(self, schedule="constant", warmup_steps=0)

    def arguments(self, *, is_ragged: bool = False) -> TrainingArguments:
        """Return the Trainer's arguments; ragged texts of like length share a batch."""
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
            disable_tqdm=False,
        )
        # The Trainer would copy the model to every GPU, and gates act through one copy's hooks.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class PartlyFrozen(nn.Module):
    """A model some of whose tensors are frozen; its state is the rest."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Pass the Trainer's wish on; frozen embeddings give no gradient to start from."""
        model: Any = self.model
        model.gradient_checkpointing_enable(**options)
        model.enable_input_require_grads()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` saved; whether `strict` or not, none of it may be missing."""
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
    """The Trainer with the teacher's part of the loss; it stops at a loss that is no number."""

    def __init__(self, *, distillation: Distillation | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distillation = distillation
        # Losses are means, so those of accumulated batches are averaged.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss
        if self.distillation is not None:
            loss = self.distillation.loss(loss, outputs.logits, inputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower "
                "--learning-rate or --gate-learning-rate, and look for broken records in the data"
            )
        super().log(logs, *args, **kwargs)


def run(trainer: Trainer) -> None:
    """Train to the last step, from the last checkpoint in the phase's folder where there is one.

    Raises TrainingError where memory does not suffice.
    """
    last = last_checkpoint(Path(trainer.args.output_dir))
    if last is not None and _step_of(last) == trainer.args.max_steps:
        # The Trainer would take one more step from a checkpoint that is already the last.
        load_model(trainer.model, last / SAFE_WEIGHTS_NAME)
        return
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        raise _out_of_memory(error) from error


def recover(
    model: nn.Module, spec: ModelSpec, masks: Masks, part: Part, data: Data, phase: Phase
) -> tuple[str, ...]:
    """Train `part` of `model` in place under `masks`; return the names of what changed."""
    with trained_part(model, spec, part) as names:
        trainer = PhaseTrainer(
            model=PartlyFrozen(model),
            args=phase.arguments(is_ragged=data.is_ragged),
            train_dataset=data.train,
            data_collator=data.collate,
            distillation=phase.distillation,
        )
        with masked_by(model, masks):
            run(trainer)
    return names


def _out_of_memory(error: BaseException) -> TrainingError:
    return TrainingError(
        "memory does not suffice: lower --batch-size (with --gradient-accumulation for the same "
        f"step) or --seq-len, or add --gradient-checkpointing ({str(error).splitlines()[0]:.120})"
    )


def log_of(folder: Path) -> list[dict[str, float]]:
    """Return what the phase in `folder` logged: step and what LOGGED names, where there is any."""
    last = last_checkpoint(folder)
    if last is None:
        return []
    history = json.loads((last / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    return [
        {name: entry[name] for name in ("step", *LOGGED) if name in entry}
        for entry in history
        if "loss" in entry
    ]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`; the Trainer writes its state file last."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
