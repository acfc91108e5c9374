"""Where gate logits start: spread by the rank of each gate's score among its kind of block."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgate_serve.training.relaxations import Relaxation
from sgate_serve.training.sites import BLOCKS, Scores, TrainedSite


def spread_start(
    sites: Sequence[TrainedSite], scores: Scores, seed: int, relaxation: Relaxation
) -> Scores:
    """Return logits from almost closed to fully open, evenly spaced: nothing is drawn."""
    ranks, (low, high) = quantiles_by_block(sites, scores), relaxation.spread
    return {key: (low + (high - low) * rank).astype(np.float32) for key, rank in ranks.items()}


def papers_start(
    sites: Sequence[TrainedSite], scores: Scores, seed: int, relaxation: Relaxation
) -> Scores:
    """Return samples of one normal distribution, the lowest where the score is lowest."""
    total = sum(site.gate.num_gates for site in sites)
    samples = np.random.default_rng(seed).normal(*relaxation.flat, total)
    levels = np.linspace(0, 1, total)
    ranks = quantiles_by_block(sites, scores)
    return {
        key: np.interp(rank, levels, np.sort(samples)).astype(np.float32)
        for key, rank in ranks.items()
    }


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
