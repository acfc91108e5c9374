"""Rotary tables against transformers' own, and what the graph refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from converters.to_onnx import write_onnx
from converters.to_onnx.heads import pad_head_columns, pad_head_rows, padded_head_dim
from converters.to_onnx.rope import inverse_frequencies, rotary_angles
from sgate_serve.engines.onnx import load_runner
from sgate_serve.engines.scheduler import SlotOptions
from sgate_serve.errors import EngineError
from tests.families.small_models import SIZES
from tests.small_llama import dense_llama, random_tokens, reference_logits, save

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    LLAMA3,
]
IDS = [str(rope["rope_type"]) for rope in ROPES]


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
@pytest.mark.parametrize("head_dim", [12, 64, 128])
def test_frequencies_are_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    config = LlamaConfig(**SIZES | {"head_dim": head_dim, "rope_parameters": dict(rope)})
    if rope["rope_type"] == "default":
        expected, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    found = inverse_frequencies(rope, head_dim)
    np.testing.assert_allclose(found, expected.numpy(), rtol=3e-7)


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
def test_logits_with_each_rope_type(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = dense_llama(rope_parameters=dict(rope), head_dim=20)
    write_onnx(save(model, tmp_path / "m"), tmp_path / "onnx")
    options = SlotOptions(slots=1, max_model_len=200, threads=1)
    tokens = random_tokens(200)
    found = load_runner(tmp_path / "onnx", options).logits(tokens)
    expected = reference_logits(model, tokens)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_rope_types_differ() -> None:
    tables = [inverse_frequencies(rope, 16) for rope in ROPES]
    assert np.abs(tables[0] - tables[1]).max() > 0.1
    assert np.abs(tables[0] - tables[2]).max() > 0.01


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic", "longrope"])
def test_other_rope_types_are_refused_by_name(rope_type: str) -> None:
    with pytest.raises(EngineError, match=f"rope_type '{rope_type}'.*use --engine torch"):
        inverse_frequencies({"rope_type": rope_type, "rope_theta": 1e4}, 16)


def test_partial_rotation_is_refused() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    with pytest.raises(EngineError, match="does not support partial_rotary_factor"):
        inverse_frequencies(rope, 16)


def test_missing_rope_value_is_named() -> None:
    incomplete = {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}
    with pytest.raises(EngineError, match="'llama3' needs 'low_freq_factor'"):
        inverse_frequencies(incomplete, 16)


def test_padded_heads_keep_their_rotary_pairs() -> None:
    head_dim, heads = 12, 3
    width = padded_head_dim(head_dim)
    rows = pad_head_rows(np.arange(heads * head_dim), head_dim).reshape(heads, 2, width // 2)
    expected = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    np.testing.assert_array_equal(rows[:, :, : head_dim // 2], expected)
    assert not rows[:, :, head_dim // 2 :].any()


def test_rows_and_columns_are_padded_alike() -> None:
    weight = np.random.default_rng(0).standard_normal((36, 5)).astype(np.float32)
    np.testing.assert_array_equal(pad_head_rows(weight, 12).T, pad_head_columns(weight.T, 12))


def test_padding_of_the_tables_turns_nothing() -> None:
    frequencies = inverse_frequencies(ROPES[0], 12)
    angles = rotary_angles(frequencies, 10)
    assert angles.shape == (10, 8)
    assert not angles[:, 6:].any()
    np.testing.assert_array_equal(angles[3, :6], 3 * frequencies)
