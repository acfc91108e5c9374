"""Finds a mask for a dense model and recovers what it costs. Only calling `train` imports torch.

A run (`train`, `pipeline`) has up to four phases on transformers' Trainer (`phases.trainer`), each
with its checkpoints in the run folder (`run_dir`):

1. dense (`phases.dense`): LoRA on the dense model; adds a missing classification head.
2. control (`phases.control`): the dense model, trained as long as the recovery, for comparison.
3. gates (`phases.gates`): trains gates under a budget, if `--method` asks for it.
   `methods` chooses the method, `granularities` what a gate controls; `gates` holds trained gates,
   `masks` one-shot scores, targets, and the selection that ends every method.
4. recovery (`phases.recovery`): tunes the model under its final mask (`phases.tuning`).

`phases.lean_steps` makes their steps cheaper, in the `precision` of the run, and `deltas` reads out
the tensors that changed.

`tasks` holds the data and metrics of `--task`, `overview` serves `--dry-run`, and `pretrain` makes
the dense model of the demo.
"""

from sgate_serve.training.train import train
from sgate_serve.training.train_options import TrainOptions, TrainResult

__all__ = ["TrainOptions", "TrainResult", "train"]
