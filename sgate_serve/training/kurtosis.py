"""The papers' kurtosis variant: gates of rows and columns without outliers are pulled harder.

For each linear, M = mean input ∘ W, [out, in]; a row's weight is softmax(−√kurtosis / 100) over all
rows of M, a column's over all columns, here times their number so that the mean is 1. Computed
once, with every gate open; the authors do it again at each step, over the open ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kurtosis
from torch import nn

from sgate_serve.gates.keys import COLUMNS
from sgate_serve.training.importance import input_means, matrix_of
from sgate_serve.training.samples import Batch
from sgate_serve.training.sites import Scores, TrainedSite

TEMPERATURE = 100.0


@torch.no_grad()
def kurtosis_pull(
    model: nn.Module, sites: Sequence[TrainedSite], batches: Sequence[Batch]
) -> Scores:
    """Return how strongly the budget pulls on each gate, mean 1 in each site, by gate key."""
    means = input_means(model, sorted({site.gate.module for site in sites}), batches)
    pulls = {}
    for site in sites:
        matrix = matrix_of(model, site.gate) * means[site.gate.module]
        vectors = matrix.T if site.gate.side == COLUMNS else matrix
        pulls[site.gate.key] = pull_of(vectors.double().cpu().numpy())
    return pulls


def pull_of(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return n · softmax(−√kurtosis / 100) of n vectors [n, length]; a constant one counts as 0."""
    is_constant = np.ptp(vectors, axis=1) == 0
    values = np.zeros(len(vectors))
    values[~is_constant] = kurtosis(vectors[~is_constant], axis=1, fisher=False)
    weights = np.exp(-np.sqrt(values) / TEMPERATURE)
    pull: NDArray[np.float32] = (weights * len(weights) / weights.sum()).astype(np.float32)
    return pull
