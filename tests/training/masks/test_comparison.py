"""Trained gates against the mask that they started from."""

import copy
from itertools import product

import pytest
import torch

from sgate_serve.gates import Gates
from sgate_serve.training.masks.comparison import best_mask
from sgate_serve.training.masks.coupled_selection import select_units
from sgate_serve.training.masks.prunable_sites import BLOCK_KINDS, GateValues, unit_sites
from sgate_serve.training.masks.removal_target import WeightTarget
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.tasks.training_data import Batch
from tests.small_llama import dense_llama, random_tokens
from tests.training.masks.test_coupled_selection import random_scores
from tests.training.masks.test_importance import spec_of
from tests.training.masks.test_masking import fold

MODEL = dense_llama(vocab_size=97, num_hidden_layers=3)
SPEC = spec_of(MODEL)
SITES = unit_sites(SPEC)
IDS = torch.from_numpy(random_tokens(6 * 12).reshape(6, 12))
BATCHES: list[Batch] = [{"input_ids": part, "labels": part} for part in (IDS[:3], IDS[3:])]


def select(ranking: Ranking) -> Gates:
    return select_units(SPEC, ranking, WeightTarget(0.4), "").gates


def folded_loss(gates: Gates) -> float:
    """Return the mean loss of the model with the mask of `gates` in its weights."""
    model = copy.deepcopy(MODEL)
    fold(model, gates.masks(SPEC))
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in BATCHES) / len(BATCHES)


@pytest.mark.parametrize("seed", range(4))
def test_each_kind_of_block_comes_from_where_less_is_lost(seed: int) -> None:
    trained, start = random_scores(SITES, seed), random_scores(SITES, seed + 100)
    best = best_mask(MODEL, SPEC, Ranking(trained, method="trained"), start, select, BATCHES)
    losses = {}
    for sources in product((True, False), repeat=len(BLOCK_KINDS)):
        of_block = dict(zip(BLOCK_KINDS, sources, strict=True))
        scores: GateValues = {
            s.gate.key: (trained if of_block[s.block] else start)[s.gate.key] for s in SITES
        }
        losses[sources] = folded_loss(select(Ranking(scores)))
    sources = min(losses, key=lambda which: losses[which])
    assert folded_loss(best) == pytest.approx(losses[sources], abs=1e-5)
    others = [
        block for block, is_trained in zip(BLOCK_KINDS, sources, strict=True) if not is_trained
    ]
    named = f", {' and '.join(others)} as scored first" if others else ""
    assert best.method == f"trained{named}"


def test_what_training_did_not_change_counts_as_trained() -> None:
    scores = random_scores(SITES, 0)
    ranking = Ranking(scores, method="trained")
    best = best_mask(MODEL, SPEC, ranking, dict(scores), select, BATCHES)
    assert best.method == "trained"
