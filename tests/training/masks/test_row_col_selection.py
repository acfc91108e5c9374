"""The selection of row and column gates, by the compiler's measure and by one of the test."""

import math

import numpy as np
import pytest

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import gate_sites
from sgate_serve.training.gates.relaxations import NOISE
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.prunable_sites import GateValues, row_col_sites
from sgate_serve.training.masks.removal_target import (
    WeightTarget,
    compile_gates,
    removed_by_plan,
)
from sgate_serve.training.masks.row_col_selection import (
    MIN_OPEN,
    protected_gates,
    select_rows_and_columns,
)
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import ROW_COL
from tests.training.masks.test_coupled_selection import random_scores, spec_of

HEADS = [(8, 8), (8, 2), (6, 3)]


def naive_removed(spec: ModelSpec, gates: Gates) -> float:
    """Count what closed gates take from their own linear."""
    masks = gates.masks(spec)
    kept = 0.0
    for gate in masks.values():
        assert gate.rows is not None and gate.columns is not None
        kept += float(np.count_nonzero(gate.rows) * np.count_nonzero(gate.columns))
    return 1 - kept / spec.num_gateable


@pytest.mark.parametrize("removed", [removed_by_plan, naive_removed], ids=["plan", "naive"])
@pytest.mark.parametrize("target", [0.005, 0.05, 0.3, 0.5])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_what_is_measured_is_the_target_within_a_point(
    heads: int, kv_heads: int, target: float, removed: object
) -> None:
    spec = spec_of(heads, kv_heads)
    measure = naive_removed if removed is naive_removed else removed_by_plan
    selection = select_rows_and_columns(
        spec, trained_of(spec), WeightTarget(target, measure), "base"
    )
    assert abs(measure(spec, selection.gates) - target) <= 0.01
    assert selection.removed == measure(spec, selection.gates) > 0
    assert selection.gates.granularity == "row-col"
    assert selection.gates.values.keys() == {site.gate.key for site in row_col_sites(spec)}
    for key, values in selection.gates.values.items():
        assert values.dtype == np.float32 and values.size == gate_sites(spec)[key].num_gates, key
        assert ((values == 0) | (values >= NOISE) & (values <= 1)).all(), key


def test_open_gates_keep_their_read_outs() -> None:
    spec = spec_of(8, 2)
    scores = scores_of(spec)
    values = select_rows_and_columns(spec, trained_of(spec), WeightTarget(0.2), "base").gates.values
    for key, logits in scores.items():
        is_open = values[key] > 0
        expected = [min(1.0, max(0.1, math.tanh(a) + 0.5)) for a in logits[is_open]]
        np.testing.assert_allclose(values[key][is_open], expected, rtol=1e-5, err_msg=key)


def test_the_lowest_of_each_kind_of_block_close() -> None:
    spec = spec_of(8, 4)
    scores = scores_of(spec)
    values = select_rows_and_columns(
        spec, Ranking(scores), WeightTarget(0.3, naive_removed), "base"
    ).gates.values
    stay = protected_gates(spec, scores)
    shares = []
    for block in ("mlp", "attention"):
        keys = [site.gate.key for site in row_col_sites(spec) if site.block == block]
        ranked, closed, kept = (
            np.concatenate([of[key] for key in keys])
            for of in (scores, {key: value == 0 for key, value in values.items()}, stay)
        )
        assert ranked[closed].max() < ranked[~closed & ~kept].min()
        shares.append(closed.mean())
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_no_linear_and_no_block_closes_even_where_all_its_gates_rank_lowest() -> None:
    spec = spec_of(8, 4)
    worst = "model.layers.1."
    scores = {k: v - 100 if k.startswith(worst) else v for k, v in scores_of(spec).items()}
    selection = select_rows_and_columns(spec, Ranking(scores), WeightTarget(0.5), "base")
    for key, values in selection.gates.values.items():
        assert np.count_nonzero(values) >= min(MIN_OPEN, values.size), key
        if key.startswith(worst):
            assert np.count_nonzero(values) == MIN_OPEN, key
    plan = compile_gates(spec, selection.gates)
    assert all(layer.mlp_units and layer.heads for layer in plan.layers)
    assert len(plan.layers[1].mlp_units) == MIN_OPEN


def test_the_best_units_are_those_whose_weakest_gate_is_strongest() -> None:
    spec = spec_of(8, 4, layers=1)
    scores = scores_of(spec)
    flags = protected_gates(spec, scores)
    mlp = "model.layers.0.mlp."
    sides = (f"{mlp}up_proj.rows", f"{mlp}gate_proj.rows", f"{mlp}down_proj.columns")
    best = np.argsort(-np.min([scores[key] for key in sides], axis=0))[:MIN_OPEN]
    for key in sides:
        assert set(np.flatnonzero(flags[key])) == set(best)
    output, value = (
        f"model.layers.0.self_attn.{name}" for name in ("o_proj.columns", "v_proj.rows")
    )
    columns = np.flatnonzero(flags[output])
    # Eight dimensions per head, two query heads per KV head.
    values = {column // 16 * 8 + column % 8 for column in columns.tolist()}
    assert len(columns) == MIN_OPEN and set(np.flatnonzero(flags[value]).tolist()) == values
    paths = [min(scores[output][c], scores[value][c // 16 * 8 + c % 8]) for c in range(64)]
    head = int(np.argmax(paths)) // 8
    of_head = sorted(range(head * 8, head * 8 + 8), key=lambda column: paths[column])
    assert set(columns.tolist()) == set(of_head[-MIN_OPEN:])


def test_a_gate_that_would_overshoot_stays_open() -> None:
    spec = spec_of(8, 4, layers=1)
    scores = scores_of(spec)
    big = "model.layers.0.self_attn.q_proj.rows"
    heavy = int(scores[big].argmin())

    def removed(spec: ModelSpec, gates: Gates) -> float:
        closed = gates.values[big][heavy] == 0
        return 0.5 * naive_removed(spec, gates) + 0.4 * bool(closed)

    selection = select_rows_and_columns(spec, Ranking(scores), WeightTarget(0.3, removed), "base")
    assert abs(selection.removed - 0.3) <= 0.01
    assert selection.gates.values[big][heavy] > 0
    others = np.delete(np.arange(scores[big].size), heavy)
    assert (selection.gates.values[big][others] == 0).any()


@pytest.mark.parametrize("target", [0.97, 0.999])
def test_a_target_beyond_what_may_close_is_refused(target: float) -> None:
    spec = spec_of(8, 1)
    message = r"nearest .* reach is 0\.\d+, because every linear keeps 4 rows and 4 columns; use"
    with pytest.raises(TrainingError, match=message):
        GRANULARITIES[ROW_COL].check_reachable(spec, WeightTarget(target))


def scores_of(spec: ModelSpec) -> GateValues:
    return random_scores(row_col_sites(spec))


def trained_of(spec: ModelSpec) -> Ranking:
    """Return random logits, and what they read out as."""
    scores = scores_of(spec)
    read_outs = {key: (np.tanh(value) + 0.5).clip(NOISE, 1) for key, value in scores.items()}
    return Ranking(scores, read_outs)
