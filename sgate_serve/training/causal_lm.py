"""One training run of a causal LM: data, Fisher start, gate phase, snap, recovery, files."""

import math
import shutil
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sgate_serve.checkpoint import Checkpoint
from sgate_serve.config_values import SGATE_MODEL_TYPE
from sgate_serve.errors import TrainingError
from sgate_serve.family import CAUSAL_LM
from sgate_serve.figures import Figures
from sgate_serve.folder import new_folder
from sgate_serve.gates import Gates, with_added_biases
from sgate_serve.plan import Masks
from sgate_serve.tensor_files import Array
from sgate_serve.training.documents import (
    Blocks,
    pack,
    read_documents,
    read_tokenizer,
    split_documents,
)
from sgate_serve.training.evaluate import mean_loss
from sgate_serve.training.gate_phase import train_gates
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.importance import FISHER_BATCHES, fisher_scores
from sgate_serve.training.masking import constant_sources, masked_linears
from sgate_serve.training.options import BIAS, NONE, TrainOptions, TrainResult
from sgate_serve.training.phases import Phase, best_device
from sgate_serve.training.recovery import recover_with_biases, recover_with_lora
from sgate_serve.training.snap import compile_gates
from sgate_serve.training.trained_gates import TrainedGates
from sgate_serve.training.work_dir import check_empty, resume_work_dir, start_work_dir, work_dir_of

METRICS_FILE = "metrics.json"
# The budget's pressure falls as it is met: a short memory lets the loss speak up again.
GATE_BETA2 = 0.95


@dataclass(frozen=True)
class Data:
    """Blocks of token ids [num_blocks, seq_len]."""

    train: Blocks
    held_out: Blocks


def train_causal_lm(options: TrainOptions) -> TrainResult:
    """Do the run that `options` describe; errors as for `sgate_serve.training.train`."""
    started = time.monotonic()
    check_empty(options.out)
    base = Checkpoint.open(options.base)
    base.check_unquantised()
    check_base(base, options)
    data = read_data(base, options)
    work = work_dir_of(options.out)
    (resume_work_dir if options.resume else start_work_dir)(work, options.to_json())
    model = load_frozen(base.folder)
    losses = {"dense": mean_loss(model, data.held_out)}
    gates = _find_gates(model, base, data, options)
    masks = gates.masks(base.spec)
    losses["masked"] = _masked_loss(model, masks, data)
    deltas = _recover(model, base, masks, data, options)
    losses["recovered"] = _masked_loss(model, masks, data)
    metrics = {
        **_removal(gates, base, deltas),
        "loss": losses,
        "perplexity": {name: math.exp(loss) for name, loss in losses.items()},
        "held_out_tokens": data.held_out.size,
        "seconds": time.monotonic() - started,
        "seed": options.seed,
        "options": options.to_json(),
    }
    with new_folder(options.out) as writer:
        gates.stage(writer, deltas)
        writer.write_json(METRICS_FILE, metrics)
    shutil.rmtree(work)
    return TrainResult(options.out, metrics)


def check_base(base: Checkpoint, options: TrainOptions) -> None:
    """Raise TrainingError if the base cannot be trained on, or not to the target, or so long."""
    if base.config.get("model_type") == SGATE_MODEL_TYPE:
        raise TrainingError(f"{base.folder} is already pruned; train on its dense base")
    if base.spec.task != CAUSAL_LM:
        raise TrainingError(
            f"{base.folder} is a {base.spec.head.model_class}; this release trains gates of causal "
            "language models"
        )
    if options.seq_len > base.spec.max_positions:
        raise TrainingError(
            f"--seq-len {options.seq_len}: {base.folder} has {base.spec.max_positions} positions"
        )
    GRANULARITIES[options.gates].check_reachable(base.spec, options.target)


def read_data(base: Checkpoint, options: TrainOptions) -> Data:
    """Read, split and pack the text; raise TrainingError if there is too little of it."""
    tokenizer = read_tokenizer(base.folder / "tokenizer.json", base.spec.vocab_size)
    documents = read_documents(options.data)
    if options.eval_data is None:
        documents, held_out = split_documents(documents, options.seed)
    else:
        held_out = read_documents(options.eval_data)
    end = end_token(base.config)
    blocks, rest = (pack(part, tokenizer, end, options.seq_len) for part in (documents, held_out))
    # Evenly spaced, for the first blocks may all be of one document.
    step = max(1, len(rest) // options.eval_blocks)
    return Data(blocks, rest[::step][: options.eval_blocks])


def end_token(config: Mapping[str, Any]) -> int | None:
    """Return the first of the config's `eos_token_id`, which may be a number, a list or absent."""
    value = config.get("eos_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else int(value)


def load_frozen(folder: Path) -> nn.Module:
    """Load a model folder in fp32, every weight frozen, on the GPU if there is one."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.requires_grad_(False).to(best_device())


def _find_gates(model: nn.Module, base: Checkpoint, data: Data, options: TrainOptions) -> Gates:
    kind = GRANULARITIES[options.gates]
    sites = kind.sites(base.spec)
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(data.train), generator=generator)
    shuffled = torch.from_numpy(data.train)[order]
    batches = torch.split(shuffled, options.batch_size)[:FISHER_BATCHES]
    start = kind.start(sites, fisher_scores(model, sites, batches), options.seed)
    trained = TrainedGates(sites, start, kind.removal(base.spec))
    phase = Phase(
        folder=work_dir_of(options.out) / "gates",
        steps=options.gate_steps,
        batch_size=options.batch_size,
        learning_rate=options.gate_learning_rate,
        schedule="constant",
        beta2=GATE_BETA2,
        warmup_steps=0,
        save_steps=options.save_steps,
        seed=options.seed,
    )
    logits = train_gates(model, trained, data.train, options.target, phase)
    return kind.snap(base.spec, logits, options.target, base.fingerprint).gates


def _recover(
    model: nn.Module, base: Checkpoint, masks: Masks, data: Data, options: TrainOptions
) -> dict[str, Array]:
    if options.recovery == NONE:
        return {}
    phase = Phase(
        folder=work_dir_of(options.out) / "recovery",
        steps=options.recovery_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_steps=options.recovery_steps // 20,
        save_steps=options.save_steps,
        seed=options.seed,
    )
    if options.recovery == BIAS:
        return recover_with_biases(model, base.spec, masks, data.train, phase)
    rank = options.lora_rank
    return recover_with_lora(model, base.spec, masks, data.train, phase, rank=rank)


def _masked_loss(model: nn.Module, masks: Masks, data: Data) -> float:
    device = next(model.parameters()).device
    with masked_linears(model, constant_sources(masks, device)):
        return mean_loss(model, data.held_out)


def _removal(gates: Gates, base: Checkpoint, deltas: Container[str]) -> dict[str, Any]:
    """Return what the Plan removes in the end; biases that the recovery added count against it."""
    plan = compile_gates(with_added_biases(base.spec, deltas), gates)
    figures = Figures.of(plan, base.spec)
    return {
        "method": gates.method,
        "removed": figures.removed,
        "removed_overall": figures.overall,
    }
