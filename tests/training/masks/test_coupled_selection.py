"""The selection of coupled gates: the compiled Plan removes the target."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.architecture.family import MLP
from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.errors import TrainingError
from sgate_serve.gates.order import num_steps
from sgate_serve.plan.figures import removed
from sgate_serve.training.gates.expected_removal import coupled_removal
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.coupled_selection import cheapest_num_groups, select_units
from sgate_serve.training.masks.prunable_sites import GateValues, PrunableSite, unit_sites
from sgate_serve.training.masks.removal_target import WeightTarget, compile_gates
from sgate_serve.training.masks.selection import Ranking
from sgate_serve.training.train_options import COUPLED


def spec_of(heads: int, kv_heads: int, *, layers: int = 3, mlp_units: int = 96) -> ModelSpec:
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": 48,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "intermediate_size": mlp_units,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    }
    return ModelSpec.from_config(config, "config.json")


def random_scores(sites: Sequence[PrunableSite], seed: int = 0) -> GateValues:
    rng = np.random.default_rng(seed)
    return {
        site.gate.key: rng.standard_normal(site.gate.num_gates).astype(np.float32) for site in sites
    }


@pytest.mark.parametrize("target", [0.05, 0.2, 0.3, 0.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 4), (8, 2), (8, 1), (6, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_removes_the_target_within_a_point(
    target: float, heads: int, kv_heads: int, seed: int
) -> None:
    spec = spec_of(heads, kv_heads)
    selection = select_units(
        spec, Ranking(random_scores(unit_sites(spec), seed)), WeightTarget(target), "base"
    )
    assert abs(removed(compile_gates(spec, selection.gates), spec) - target) <= 0.01
    for key, values in selection.gates.values.items():
        assert values.dtype == np.float32, key
        assert set(values.tolist()) <= {0.0, 1.0}, key


def test_what_goes_is_counted_in_weights_and_ranks_lowest() -> None:
    spec = spec_of(8, 4)
    scores = random_scores(unit_sites(spec))
    selection = select_units(spec, Ranking(scores), WeightTarget(0.3), "base")
    plan = compile_gates(spec, selection.gates)
    for layer in plan.layers:
        name = spec.family.layer_name(layer.index)
        for axis, key in (("mlp_units", "mlp_units"), ("kv_heads", "kv_groups")):
            gates = selection.gates.values[f"{name}.{key}"]
            kept = layer.mlp_units if axis == "mlp_units" else layer.kv_heads
            assert kept == tuple(np.flatnonzero(gates).tolist())
    units = np.concatenate([scores[key] for key in scores if key.endswith("mlp_units")])
    gates = np.concatenate([selection.gates.values[k] for k in scores if k.endswith("mlp_units")])
    assert units[gates == 0].max() < units[gates == 1].min()
    kept_groups = sum(len(layer.kv_heads) for layer in plan.layers)
    assert kept_groups == 12 - round(0.3 * 12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 8])
def test_the_number_of_groups_is_the_cheapest(seed: int, block: int) -> None:
    spec, rng = spec_of(8, 4, layers=4), np.random.default_rng(seed)
    sites = unit_sites(spec)
    factor = {"mlp": 1.0, "attention": 10.0 ** rng.uniform(-1, 3)}
    costs = {
        s.gate.key: (factor[s.block] * rng.random(s.gate.num_gates) ** 2).astype(np.float32)
        for s in sites
    }

    def cost_of(num_groups: int) -> float:
        ranking = Ranking(costs, gate_block=block, num_groups=num_groups)
        values = select_units(spec, ranking, WeightTarget(0.4), "base").gates.values
        assert sum((values[s.gate.key] == 0).sum() for s in sites if s.block == "attention") == (
            num_groups
        )
        return float(sum(costs[key][gates == 0].sum() for key, gates in values.items()))

    cheapest = cheapest_num_groups(spec, costs, WeightTarget(0.4), block)
    nearby = [count for count in (cheapest - 1, cheapest + 1) if 2 <= count <= 10]
    # Bisection on the Plan may take one block more or less than the weights ask for.
    slack = 2 * block * max(costs[s.gate.key].max() for s in sites if s.block == "mlp")
    assert all(cost_of(cheapest) <= cost_of(count) + slack for count in nearby)


def test_groups_that_cost_all_stay_and_free_ones_all_go() -> None:
    spec = spec_of(8, 4, layers=4)
    for attention, expected in ((1e6, 0), (0.0, 12)):
        costs = {
            s.gate.key: np.full(
                s.gate.num_gates, attention if s.block == "attention" else 1.0, "f4"
            )
            for s in unit_sites(spec)
        }
        assert cheapest_num_groups(spec, costs, WeightTarget(0.3)) == expected


def test_every_block_keeps_its_best_unit_and_group() -> None:
    spec = spec_of(8, 4)
    scores = random_scores(unit_sites(spec))
    worst = "model.layers.1."
    scores = {k: v - 100 if k.startswith(worst) else v for k, v in scores.items()}
    gates = select_units(spec, Ranking(scores), WeightTarget(0.4), "base").gates
    layer = compile_gates(spec, gates).layers[1]
    assert layer.mlp_units == (int(scores[f"{worst}mlp_units"].argmax()),)
    assert layer.kv_heads == (int(scores[f"{worst}kv_groups"].argmax()),)


def test_heads_are_the_groups_where_each_has_its_own_keys() -> None:
    kinds = {site.gate.kind for site in unit_sites(spec_of(8, 8))}
    assert kinds == {"mlp_units", "heads"}


def test_unit_weights_add_up_to_all_block_weights() -> None:
    spec = spec_of(8, 2)
    assert sum(s.unit_weights * s.gate.num_gates for s in unit_sites(spec)) == spec.num_gateable


def test_a_target_beyond_what_may_close_is_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"--target 0\.95: the nearest .* reach is 0\.\d+, because"
    ):
        GRANULARITIES[COUPLED].check_reachable(spec_of(8, 1), WeightTarget(0.95))


def test_only_mlp_units_close_where_heads_stay_under_one_norm() -> None:
    spec = replace(spec_of(4, 2), family=FAMILIES["olmo2"])
    sites = unit_sites(spec)
    assert {site.block for site in sites} == {MLP}
    ranking = Ranking(random_scores(sites))
    selection = select_units(spec, ranking, WeightTarget(0.3), "")
    assert selection.removed == pytest.approx(0.3, abs=0.01)
    mlp, attention = coupled_removal(spec)(
        {key: torch.from_numpy(values) for key, values in selection.gates.values.items()}
    )
    assert mlp > 0.3 and attention == 0
    with pytest.raises(TrainingError, match="because every MLP keeps one unit, and heads under"):
        select_units(spec, ranking, WeightTarget(0.9), "")


def test_a_target_between_coarse_units_is_refused() -> None:
    spec = replace(spec_of(2, 1, layers=1), layers=(LayerShape(2, 1, 16, 4),))
    with pytest.raises(TrainingError, match="one unit and one KV group; use that target"):
        GRANULARITIES[COUPLED].check_reachable(spec, WeightTarget(0.25))


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("block", [1, 8])
def test_what_closes_next_follows_the_scores_of_each_kind(is_joint: bool, block: int) -> None:
    spec = spec_of(8, 4)
    sites = unit_sites(spec)
    scores = {key: np.abs(each) for key, each in random_scores(sites).items()}
    ranking = Ranking(scores, gate_block=block, is_joint=is_joint)
    gates = select_units(spec, ranking, WeightTarget(0.3), "base").gates
    last = num_steps(gates.order)
    for key, steps in gates.order.items():
        assert np.array_equal(steps == 0, gates.values[key] == 0), key
        # Within a site the order is that of the scores, and the best one stays.
        closing = np.argsort(np.where(steps < 0, last + 1, steps), kind="stable")
        places = np.where(steps < 0, last + 1, steps)[np.argsort(scores[key])]
        assert (np.diff(places) >= 0).all() and steps[closing[-1]] == -1
        assert steps[int(scores[key].argmax())] == -1
    for kind in ("mlp_units", "kv_groups"):
        parts: dict[int, list[float]] = {}
        for key, steps in gates.order.items():
            for step in np.unique(steps[steps > 0]) if key.endswith(kind) else ():
                parts.setdefault(int(step), []).append(float(scores[key][steps == step].mean()))
        means = [parts[step] for step in sorted(parts)]
        assert all(len(each) == 1 for each in means), "a step closes one part"
        assert (np.diff(np.concatenate(means)) >= 0).all()


def test_scores_that_compare_close_next_what_costs_least_for_its_weights() -> None:
    spec = spec_of(8, 4)
    sites = unit_sites(spec)
    weights = {site.gate.key: site.unit_weights for site in sites}
    costs = {key: np.abs(each) * weights[key] for key, each in random_scores(sites).items()}
    ranking = Ranking(costs, is_joint=True, num_groups=1)
    order = select_units(spec, ranking, WeightTarget(0.2), "base").gates.order
    paid = {
        int(step): costs[key][place] / weights[key]
        for key, steps in order.items()
        for place, step in enumerate(steps)
        if step > 0
    }
    assert [*sorted(paid)] == [*range(1, num_steps(order) + 1)]
    kinds = {key.rpartition(".")[2]: steps for key, steps in order.items() if (steps > 0).any()}
    assert kinds.keys() == {"mlp_units", "kv_groups"}
    assert (np.diff([paid[step] for step in sorted(paid)]) >= 0).all()


def test_scores_that_do_not_compare_close_the_same_share_of_what_is_left() -> None:
    spec = spec_of(8, 4, layers=4)
    ranking = Ranking(random_scores(unit_sites(spec)))
    gates = select_units(spec, ranking, WeightTarget(0.2), "base").gates
    middle = gates.closed_to(num_steps(gates.order) // 2)
    for kind in ("mlp_units", "kv_groups"):
        keys = [key for key in gates.order if key.endswith(kind)]
        left = sum(int((gates.order[key] > 0).sum()) for key in keys)
        closed = sum(int((gates.values[key] != middle.values[key]).sum()) for key in keys)
        assert closed == pytest.approx(left / 2, abs=1), kind
