"""Ranks of scores among all gates of their kind of block."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.training.sites import BLOCKS, Scores, TrainedSite


def quantiles_by_block(
    sites: Sequence[TrainedSite], scores: Scores
) -> dict[str, NDArray[np.float64]]:
    """Return the rank of each score among all of its kind of block, 0 for the lowest to 1."""
    quantiles: dict[str, NDArray[np.float64]] = {}
    for block in BLOCKS:
        keys = [site.gate.key for site in sites if site.block == block]
        if keys:
            quantiles |= zip(keys, _quantiles([scores[key] for key in keys]), strict=True)
    return quantiles


def _quantiles(arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    joined = np.concatenate(arrays)
    ranks = np.empty(joined.size)
    ranks[np.argsort(joined, kind="stable")] = np.arange(joined.size)
    return np.split(ranks / max(joined.size - 1, 1), np.cumsum([a.size for a in arrays])[:-1])
