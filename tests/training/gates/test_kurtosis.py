"""The kurtosis weighting against formulas worked out without torch."""

import math

import numpy as np
import pytest

from sgate_serve.training.gates.kurtosis import kurtosis_pressure, pressure_of
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.train_options import ROW_COL
from tests.small_llama import dense_llama
from tests.training.masks.test_importance import BATCHES, hidden_inputs, spec_of


def test_the_pressure_is_the_papers_softmax_of_kurtosis() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 40))
    vectors[2, 0] = 30.0
    fourth = [np.mean((v - v.mean()) ** 4) / np.var(v) ** 2 for v in vectors]
    weights = [math.exp(-math.sqrt(k) / 100) for k in fourth]
    expected = [5 * weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(pressure_of(vectors), expected, rtol=1e-6)
    assert pressure_of(vectors).argmin() == 2
    assert pressure_of(np.ones((3, 4))).tolist() == pytest.approx([1, 1, 1])


def test_a_pressure_is_of_mean_inputs_times_weights() -> None:
    model = dense_llama()
    sites = GRANULARITIES[ROW_COL].sites(spec_of(model))
    pressure = kurtosis_pressure(model, sites, BATCHES)
    assert pressure.keys() == {site.gate.key for site in sites}
    states = hidden_inputs(model, "model.layers.1.mlp.down_proj").mean(axis=(0, 1))
    matrix = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy() * states
    rows, columns = pressure_of(matrix.astype(np.float64)), pressure_of(matrix.T.astype(np.float64))
    np.testing.assert_allclose(pressure["model.layers.1.mlp.down_proj.rows"], rows, rtol=1e-4)
    np.testing.assert_allclose(pressure["model.layers.1.mlp.down_proj.columns"], columns, rtol=1e-4)
