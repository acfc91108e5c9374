"""The expected removal: against counts by hand, and against what sampled gates remove."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.gates import Gates
from sgate_serve.plan.figures import Figures
from sgate_serve.training.gates.expected_removal import coupled_removal, row_col_removal
from sgate_serve.training.masks.prunable_sites import (
    BLOCK_KINDS,
    num_block_weights,
    row_col_sites,
    unit_sites,
)
from sgate_serve.training.masks.removal_target import compile_gates
from tests.families.zoo import ZOO, build
from tests.training.masks.test_coupled_selection import spec_of

ZOO_CLASSES = {
    "bert": "BertModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "modernbert": "ModernBertModel",
}

Flags = dict[str, NDArray[np.float64]]


def test_coupled_gates_count_the_weights_of_their_units() -> None:
    spec = spec_of(8, 2)
    chances = {s.gate.key: torch.ones(s.gate.num_gates) for s in unit_sites(spec)}
    for site in unit_sites(spec):
        if site.gate.layer == 0:
            chances[site.gate.key][: site.gate.num_gates // 2] = 0.0
    # Half of one of three layers, in both kinds.
    found = coupled_removal(spec)(chances).tolist()
    assert found == pytest.approx([1 / 6, 1 / 6], abs=1e-6)


def test_row_col_gates_that_are_open_remove_nothing() -> None:
    spec = spec_of(8, 2)
    chances = {s.gate.key: torch.ones(s.gate.num_gates) for s in row_col_sites(spec)}
    assert row_col_removal(spec)(chances).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_closed_rows_and_columns_take_their_partners(activation: str) -> None:
    spec = replace(spec_of(6, 3, layers=2, mlp_units=20), activation=activation)
    flags = _sampled(spec, {s.gate.key: 0.7 for s in row_col_sites(spec)}, seed=0)
    chances = {key: torch.from_numpy(flag) for key, flag in flags.items()}
    found = row_col_removal(spec)(chances).tolist()
    assert found == pytest.approx(_removed_by_hand(spec, flags), abs=1e-6)


def test_the_expectation_is_the_mean_of_what_samples_remove() -> None:
    spec = spec_of(4, 2, layers=2, mlp_units=24)
    rng = np.random.default_rng(1)
    chances = {s.gate.key: float(rng.uniform(0.5, 1)) for s in row_col_sites(spec)}
    samples = [_removed_by_hand(spec, _sampled(spec, chances, seed)) for seed in range(400)]
    tensors = {
        s.gate.key: torch.full((s.gate.num_gates,), chances[s.gate.key])
        for s in row_col_sites(spec)
    }
    found = row_col_removal(spec)(tensors).tolist()
    np.testing.assert_allclose(found, np.mean(samples, axis=0), atol=0.01)


@pytest.mark.parametrize("family", ZOO_CLASSES)
def test_what_is_expected_of_gates_without_noise_is_what_the_plan_removes(family: str) -> None:
    config = build(ZOO[family][0], seed=0).config
    names = {"architectures": [ZOO_CLASSES[family]]}
    spec = ModelSpec.from_config(config.to_dict() | names, "test model")
    flags = _sampled(spec, {s.gate.key: 0.8 for s in row_col_sites(spec)}, seed=0)
    chances = {key: torch.from_numpy(flag) for key, flag in flags.items()}
    fractions = row_col_removal(spec)(chances).tolist()
    blocks = [num_block_weights(spec, block) for block in BLOCK_KINDS]
    expected = np.dot(fractions, blocks) / sum(blocks)
    gates = Gates("", spec.family.name, "row-col", "", {k: _float32(v) for k, v in flags.items()})
    # The compiler also follows what this count leaves out, such as rotary pairs.
    compiled = Figures.of(compile_gates(spec, gates), spec).compiled
    assert expected <= compiled + 1e-9
    assert compiled - expected < (0.02 if spec.family.is_rotary else 1e-9)


def _float32(flags: NDArray[np.float64]) -> NDArray[np.float32]:
    return flags.astype(np.float32)


def _sampled(spec: ModelSpec, chances: dict[str, float], seed: int) -> Flags:
    rng = np.random.default_rng(seed)
    return {
        s.gate.key: (rng.random(s.gate.num_gates) < chances[s.gate.key]).astype(np.float64)
        for s in row_col_sites(spec)
    }


def _removed_by_hand(spec: ModelSpec, flags: Flags) -> tuple[float, float]:
    """Count, one unit and one value dimension at a time, the weights that are still needed."""
    kept, total = {"mlp": 0.0, "self_attn": 0.0}, {"mlp": 0, "self_attn": 0}
    for index, layer in enumerate(spec.layers):
        rows, columns = (
            {
                role: flags[f"{spec.family.linear(index, role)}.{side}"].copy()
                for role in spec.linear_shapes(index)
            }
            for side in ("rows", "columns")
        )
        for unit in range(layer.mlp_units):
            lives = rows["up"][unit] and columns["down"][unit]
            if spec.activation == "silu":
                lives = lives and rows["gate"][unit]
            rows["up"][unit] = columns["down"][unit] = lives
            rows["gate"][unit] = lives and rows["gate"][unit]
        for dim in range(layer.num_kv_heads * layer.head_dim):
            kv, offset = divmod(dim, layer.head_dim)
            heads = range(kv * layer.queries_per_kv, (kv + 1) * layer.queries_per_kv)
            readers = [head * layer.head_dim + offset for head in heads]
            for reader in readers:
                columns["output"][reader] *= rows["value"][dim]
            rows["value"][dim] *= max(columns["output"][reader] for reader in readers)
        for role, (height, width) in spec.linear_shapes(index).items():
            block = "mlp" if role in ("up", "gate", "down") else "self_attn"
            kept[block] += rows[role].sum() * columns[role].sum()
            total[block] += height * width
    return 1 - kept["mlp"] / total["mlp"], 1 - kept["self_attn"] / total["self_attn"]
