"""Draws one token of a row of logits: temperature → min_p → top_k → top_p → a random draw.

The vocabulary is never sorted, and what top_k leaves out is not even weighed.
"""

import numpy as np
from numpy.typing import NDArray

from sgate_serve.engines.contract import SamplingParams
from sgate_serve.engines.model_protocols import Floats

Indices = NDArray[np.int64]

# Weights are summed in blocks of this size.
BLOCK = 128
# Smaller temperatures would divide by zero in fp32; sampling is greedy long before that.
TINY = 1e-30
# Of a bound: more than fp32 sums of any vocabulary err by.
CLEARLY = 0.999
# Of the temperature: more than what logits may differ by whose weights round to the same.
ROUNDING = 1e-3


def draw(logits: Floats, params: SamplingParams, generator: np.random.Generator) -> int:
    """Draw a token by temperature, min_p, top_k and top_p."""
    if not 0 < params.top_k < len(logits):
        return _draw_weighted(_weights(logits, params), params.top_p, generator)
    blocks, likely, floor = _likely_blocks(logits, params)
    weights = _weights(likely, params)
    # Ties with the last kept token are kept too, as in vLLM.
    last = np.partition(weights[~(likely < floor)], -params.top_k)[-params.top_k]
    weights *= weights >= last
    index = _draw_weighted(weights, params.top_p, generator)
    return int(blocks[index // BLOCK]) * BLOCK + index % BLOCK


def _likely_blocks(logits: Floats, params: SamplingParams) -> tuple[Indices, Floats, np.float32]:
    """Return the blocks that have tokens of top_k, their logits, and a floor of the top_k largest.

    Weights elsewhere are 0 after top_k, which changes no sum, so they are not even computed.
    """
    num_blocks = -(-len(logits) // BLOCK)
    padded = logits
    if len(logits) % BLOCK:
        padded = np.full(num_blocks * BLOCK, -np.inf, np.float32)
        padded[: len(logits)] = logits
    floor = np.float32(-np.inf)
    if params.top_k <= num_blocks:
        # Any division into groups will do: as many logits as groups reach the floor.
        maxima = np.maximum.reduce(padded.reshape(BLOCK, -1))
        floor = np.partition(maxima, -params.top_k)[-params.top_k]
        # Tokens whose weights round to that of the last one are kept too.
        floor -= np.float32(ROUNDING * params.temperature)
    # Not `>=`: logits that are no numbers stay.
    likely = np.flatnonzero(~(padded < floor))
    blocks = np.flatnonzero(np.bincount(likely // BLOCK))
    return blocks, padded.reshape(-1, BLOCK)[blocks].reshape(-1), floor


def _weights(logits: Floats, params: SamplingParams) -> Floats:
    """Return weights [padded vocab] after temperature and min_p; the largest is 1.

    Computed in fp32, whose exp is several times faster, and row by row, which stays in a CPU cache.
    Zeros pad the last block: see `_invert`.
    """
    vocab = len(logits)
    padded = np.zeros(-(-vocab // BLOCK) * BLOCK, np.float32)
    weights = padded[:vocab]
    # The maximum is subtracted first, so a tiny temperature at worst overflows to weight 0.
    np.subtract(logits, np.maximum.reduce(logits), out=weights)
    with np.errstate(over="ignore"):
        weights /= np.float32(max(params.temperature, TINY))
    np.exp(weights, out=weights)
    if params.min_p:
        weights[weights < np.float32(params.min_p)] = 0
    return padded


def _draw_weighted(weights: Floats, top_p: float, generator: np.random.Generator) -> int:
    """Draw from the smallest set of most likely tokens whose share reaches `top_p`.

    Nothing is sorted: a token drawn from all tokens is in the set if the more likely ones (among
    ties, those with a lower id) have a share below `top_p`. If it is not, no less likely token is
    either, so the next draw is from the more likely ones.
    """
    sums = _running_sums(weights)
    bound = top_p * sums[-1]
    while True:
        token = _invert(weights, sums, generator.random())
        if top_p == 1:
            return token
        weights = _before(weights, token)
        # Mostly clear without the sums of blocks, which take twice as long as a rough one.
        if np.add.reduce(weights) < CLEARLY * bound:
            return token
        sums = _running_sums(weights)
        # Not `<`: a sum that is no number must end it too.
        if not sums[-1] >= bound:
            return token


def _before(weights: Floats, token: int) -> Floats:
    """Return the weights of more likely tokens and, among ties, of those with a lower id."""
    is_before = np.empty(len(weights), np.bool_)
    np.greater_equal(weights[:token], weights[token], out=is_before[:token])
    np.greater(weights[token:], weights[token], out=is_before[token:])
    # Several times as fast as np.where.
    kept = is_before.astype(np.float32)
    return np.multiply(weights, kept, out=kept)


def _running_sums(weights: Floats) -> NDArray[np.float64]:
    """Return the sums of the weights up to the end of each block."""
    blocks = np.add.reduce(weights.reshape(-1, BLOCK), axis=-1)
    sums: NDArray[np.float64] = np.add.accumulate(blocks, dtype=np.float64)
    return sums


def _invert(weights: Floats, sums: NDArray[np.float64], uniform: float) -> int:
    """Return the first index whose cumulative weight exceeds the share `uniform` of the total.

    `sums` are those of blocks, since a running sum over all weights is slow. An index of weight 0
    is never returned.
    """
    wanted = uniform * sums[-1]
    block = _first_above(sums, wanted)
    inside = np.add.accumulate(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    rest = wanted - (sums[block - 1] if block else 0.0)
    return block * BLOCK + _first_above(inside, rest)


def _first_above(sums: NDArray[np.float64], wanted: float) -> int:
    """Return the first index at which running sums exceed what is wanted.

    That may be the total, as a uniform close to 1 rounds up; then it is where they reach the total.
    """
    # The method, as the function's checks take longer than the search.
    index = int(sums.searchsorted(wanted, side="right"))
    return index if index < len(sums) else int(sums.searchsorted(sums[-1]))
