"""The papers' kurtosis variant: stronger pressure on rows and columns without outliers.

For each linear let M = mean input ∘ W, [out, in]. The pressure on a row is softmax(−√kurtosis /
100) over all rows of M, on a column over all columns; here it is scaled to a mean of 1. It is
computed once, while every gate is open; the authors recompute it at every step, over the open
gates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kurtosis
from torch import nn

from sgate_serve.gates.keys import COLUMNS
from sgate_serve.training.masks.importance import input_means, matrix_of
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite
from sgate_serve.training.tasks.training_data import Batch

TEMPERATURE = 100.0


@torch.no_grad()
def kurtosis_pressure(
    model: nn.Module, sites: Sequence[PrunableSite], batches: Sequence[Batch]
) -> GateValues:
    """Return the weight of the budget's pressure on each gate, by gate key; the mean is 1."""
    means = input_means(model, sorted({site.gate.module for site in sites}), batches)
    pressure = {}
    for site in sites:
        matrix = matrix_of(model, site.gate) * means[site.gate.module]
        vectors = matrix.T if site.gate.side == COLUMNS else matrix
        pressure[site.gate.key] = pressure_of(vectors.double().cpu().numpy())
    return pressure


def pressure_of(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return n · softmax(−√kurtosis / 100) of n vectors [n, length]; a constant counts as 0."""
    is_constant = np.ptp(vectors, axis=1) == 0
    values = np.zeros(len(vectors))
    values[~is_constant] = kurtosis(vectors[~is_constant], axis=1, fisher=False)
    weights = np.exp(-np.sqrt(values) / TEMPERATURE)
    pressure: NDArray[np.float32] = (weights * len(weights) / weights.sum()).astype(np.float32)
    return pressure
