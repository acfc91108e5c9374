"""Loss and perplexity of a causal LM on blocks of token ids."""

import math

import torch
from torch import nn

from sgate_serve.training.documents import Blocks


@torch.no_grad()
def mean_loss(model: nn.Module, blocks: Blocks, batch_size: int = 8) -> float:
    """Return the mean negative log likelihood, in nats, of each block's tokens but its first."""
    device = next(model.parameters()).device
    was_training, total = model.training, 0.0
    model.eval()
    for start in range(0, len(blocks), batch_size):
        ids = torch.from_numpy(blocks[start : start + batch_size]).to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        labels = ids[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        total += float(loss)
    model.train(was_training)
    return total / blocks[:, 1:].size


def perplexity(model: nn.Module, blocks: Blocks, batch_size: int = 8) -> float:
    """Return exp of the mean loss of `model` on `blocks` [num_blocks, seq_len]."""
    return math.exp(mean_loss(model, blocks, batch_size))
