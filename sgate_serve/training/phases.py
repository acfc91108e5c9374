"""One phase of training on transformers' Trainer: its arguments, its checkpoints, its resume.

A run has two phases, gates and recovery, each with its own folder of checkpoints. A phase that is
complete is loaded, one that was interrupted continues from its last checkpoint. Checkpoints hold
what is trained, not the frozen base.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from sgate_serve.training.documents import Blocks

LOGS_PER_PHASE = 20


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
    beta2: float = 0.999

    def arguments(self) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(self.folder),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.schedule,
            warmup_steps=self.warmup_steps,
            weight_decay=0.0,
            adam_beta2=self.beta2,
            logging_steps=max(1, self.steps // LOGS_PER_PHASE),
            save_strategy="steps",
            save_steps=self.save_steps,
            save_total_limit=1,
            seed=self.seed,
            data_seed=self.seed,
            use_cpu=best_device().type == "cpu",
            dataloader_num_workers=0,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=False,
        )


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BlockDataset(Dataset[dict[str, Tensor]]):
    """Blocks [num_blocks, seq_len] as causal-LM samples; the model shifts the labels itself."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = torch.from_numpy(blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


class PartlyFrozen(nn.Module):
    """A causal LM some of whose tensors are frozen; its state is the rest."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        return self.model(input_ids=input_ids, labels=labels, use_cache=False)

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


def run(trainer: Trainer) -> None:
    """Train to the last step, from the last checkpoint in the phase's folder where there is one."""
    last = last_checkpoint(Path(trainer.args.output_dir))
    if last is not None and _step_of(last) == trainer.args.max_steps:
        # The Trainer would take one more step from a checkpoint that is already the last.
        load_model(trainer.model, last / SAFE_WEIGHTS_NAME)
        return
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint in `folder`; the Trainer writes its state file last."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
