"""Metrics of a model on held-out samples during training, in memory and on its device."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sgate_serve.data.documents import Blocks
from sgate_serve.data.metrics import (
    Metrics,
    classification_metrics,
    perplexity_metrics,
    regression_metrics,
)
from sgate_serve.progress import counted
from sgate_serve.training.tasks.training_data import (
    Batch,
    Samples,
    block_samples,
    collate,
    on_device,
)

BATCH_SIZE = 8


def causal_lm_metrics(model: nn.Module, samples: Samples, pad_token: int) -> Metrics:
    """Return loss (nats per token) and perplexity over all tokens but the first of each sample."""
    nats: list[float] = []
    for batch, logits in _outputs(model, samples, pad_token, BATCH_SIZE):
        nats += _nats(logits, batch["input_ids"]).sum(dim=1).tolist()
    tokens = [len(sample["input_ids"]) - 1 for sample in samples.samples]
    return perplexity_metrics(np.array(nats), np.array(tokens))


def classifier_metrics(model: nn.Module, samples: Samples, pad_token: int) -> Metrics:
    """Return the metrics of a classifier or, with float labels, of a regression."""
    rows, labels = [], []
    for batch, logits in _outputs(model, samples, pad_token, BATCH_SIZE):
        rows.append(logits.double().cpu().numpy())
        labels.append(batch["labels"].cpu().numpy())
    outputs, truth = np.concatenate(rows), np.concatenate(labels)
    if np.issubdtype(truth.dtype, np.floating):
        return regression_metrics(outputs[:, 0], truth.astype(np.float64))
    return classification_metrics(outputs, truth)


def mean_loss(model: nn.Module, blocks: Blocks, batch_size: int = BATCH_SIZE) -> float:
    """Return the mean loss in nats over all tokens but the first of each block."""
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
    """Yield each batch with its logits, in the order of the samples."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for start in counted(range(0, len(samples), batch_size), "batch"):
        part = samples.samples[start : start + batch_size]
        batch = on_device(collate(part, pad_token), device)
        yield batch, model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    model.train(was_training)


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log likelihood [batch, seq_len - 1] of the tokens after the first.

    One sample at a time, as its logits in fp32 are large.
    """
    pairs = zip(logits, ids, strict=True)
    return torch.stack(
        [
            nn.functional.cross_entropy(own[:-1].float(), tokens[1:], reduction="none")
            for own, tokens in pairs
        ]
    )
