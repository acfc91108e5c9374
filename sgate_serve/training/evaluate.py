"""Scores of a model in training: its outputs on held-out samples, as they are on the device."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sgate_serve.data.documents import Blocks
from sgate_serve.data.metrics import (
    Scores,
    classification_scores,
    perplexity_scores,
    regression_scores,
)
from sgate_serve.training.samples import Batch, Samples, block_samples, collate, on_device

BATCH_SIZE = 8


def causal_lm_scores(model: nn.Module, samples: Samples, pad_token: int) -> Scores:
    """Return loss (nats per token) and perplexity of each sample's tokens but its first."""
    nats: list[float] = []
    for batch, logits in _outputs(model, samples, pad_token, BATCH_SIZE):
        nats += _nats(logits, batch["input_ids"]).sum(dim=1).tolist()
    tokens = [len(sample["input_ids"]) - 1 for sample in samples.samples]
    return perplexity_scores(np.array(nats), np.array(tokens))


def classifier_scores(model: nn.Module, samples: Samples, pad_token: int) -> Scores:
    """Return what `sgate_serve.data.metrics` says of classes or, with float labels, of numbers."""
    rows, labels = [], []
    for batch, logits in _outputs(model, samples, pad_token, BATCH_SIZE):
        rows.append(logits.double().cpu().numpy())
        labels.append(batch["labels"].cpu().numpy())
    outputs, truth = np.concatenate(rows), np.concatenate(labels)
    if np.issubdtype(truth.dtype, np.floating):
        return regression_scores(outputs[:, 0], truth.astype(np.float64))
    return classification_scores(outputs, truth)


def mean_loss(model: nn.Module, blocks: Blocks, batch_size: int = BATCH_SIZE) -> float:
    """Return the mean negative log likelihood, in nats, of each block's tokens but its first."""
    outputs = _outputs(model, block_samples(blocks), 0, batch_size)
    total = sum(float(_nats(logits, batch["input_ids"]).sum()) for batch, logits in outputs)
    return total / blocks[:, 1:].size


def perplexity(model: nn.Module, blocks: Blocks, batch_size: int = BATCH_SIZE) -> float:
    """Return exp of the mean loss of `model` on `blocks` [num_blocks, seq_len]."""
    return math.exp(mean_loss(model, blocks, batch_size))


@torch.no_grad()
def _outputs(
    model: nn.Module, samples: Samples, pad_token: int, batch_size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield (batch, logits in fp32), in the order of the samples."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for start in range(0, len(samples), batch_size):
        part = samples.samples[start : start + batch_size]
        batch = on_device(collate(part, pad_token), device)
        yield batch, model(**{k: v for k, v in batch.items() if k != "labels"}).logits.float()
    model.train(was_training)


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log likelihood [batch, seq_len - 1] of the tokens after the first."""
    targets = ids[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none"
    )
    return losses.view(targets.shape)
