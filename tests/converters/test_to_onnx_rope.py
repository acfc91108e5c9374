"""Rotary tables against transformers' own, and what the graph refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from converters.to_onnx import write_onnx
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.rope import RotaryTable, attention_factor, inverse_frequencies
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import SlotOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import all_logits
from sgate_serve.errors import CheckpointError, EngineError
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
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    LLAMA3,
    YARN,
    YARN | {"beta_fast": 8, "beta_slow": 2, "truncate": False, "attention_factor": 1.3},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.3},
    {"rope_type": "proportional", "rope_theta": 1e4, "factor": 4.0},
]
IDS = [f"{number}-{rope['rope_type']}" for number, rope in enumerate(ROPES)]


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
@pytest.mark.parametrize("head_dim", [12, 64, 128])
def test_frequencies_are_those_of_transformers(rope: dict[str, Any], head_dim: int) -> None:
    config = LlamaConfig(**SIZES | {"head_dim": head_dim, "rope_parameters": dict(rope)})
    if rope["rope_type"] == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    found = inverse_frequencies(rope, head_dim)
    np.testing.assert_allclose(found, expected.numpy(), rtol=3e-7)
    assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
def test_logits_with_each_rope_type(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = dense_llama(rope_parameters=dict(rope), head_dim=20)
    write_onnx(save(model, tmp_path / "m"), tmp_path / "onnx")
    options = SlotOptions(slots=1, max_model_len=200, threads=1)
    tokens = random_tokens(200)
    found = all_logits(load_runner(tmp_path / "onnx", options), tokens)
    expected = reference_logits(model, tokens)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_rope_types_differ() -> None:
    tables = [inverse_frequencies(rope, 16) for rope in ROPES]
    assert np.abs(tables[0] - tables[1]).max() > 0.1
    assert np.abs(tables[0] - tables[2]).max() > 0.01
    assert np.abs(tables[0] - tables[3]).max() > 0.01
    assert np.abs(tables[3] - tables[4]).max() > 0.01


def test_the_other_rope_type_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"rope_type 'dynamic'.*use --engine torch"):
        inverse_frequencies({"rope_type": "dynamic", "rope_theta": 1e4}, 16)


@pytest.mark.parametrize(("scaled", "is_refused"), [({}, False), (ROPES[1], True)])
def test_partial_rotation_is_ignored_or_refused_where_transformers_has_none(
    tmp_path: Path, scaled: dict[str, Any], is_refused: bool
) -> None:
    model = dense_llama()
    checkpoint = save(model, tmp_path / "m")
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"partial_rotary_factor": 0.5, **scaled}
    path.write_text(json.dumps(config))
    if is_refused:
        # In transformers too, the first forward fails.
        with pytest.raises(CheckpointError, match=r"partial_rotary_factor 0.5 with rope_type 'lin"):
            Checkpoint.open(checkpoint.folder)
        return
    write_onnx(Checkpoint.open(checkpoint.folder), tmp_path / "onnx")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    tokens, options = random_tokens(20), SlotOptions(slots=1, max_model_len=20, threads=1)
    found = all_logits(load_runner(tmp_path / "onnx", options), tokens)
    expected = reference_logits(loaded, tokens)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_missing_rope_value_is_named() -> None:
    incomplete = {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}
    with pytest.raises(EngineError, match="'llama3' needs 'low_freq_factor'"):
        inverse_frequencies(incomplete, 16)


def test_padded_heads_keep_their_rotary_pairs() -> None:
    layout, heads = HeadLayout(12, 12), 3
    rows = layout.pad_rows(np.arange(heads * 12)).reshape(heads, 2, layout.width // 2)
    np.testing.assert_array_equal(rows[:, :, :6], np.arange(heads * 12).reshape(heads, 2, 6))
    assert not rows[:, :, 6:].any()


@pytest.mark.parametrize(
    ("rotary_dims", "expected"),
    [
        (0, [*range(12)]),
        (4, [0, 1, 8, 9, 2, 3, 4, 5, 6, 7, 10, 11]),
        (5, [0, 1, 2, 8, 9, 10, 3, 4, 5, 6, 7, 11]),
        (12, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
    ],
)
def test_what_does_not_rotate_takes_the_places_left(rotary_dims: int, expected: list[int]) -> None:
    positions = HeadLayout(12, rotary_dims).positions(2)
    np.testing.assert_array_equal(positions, [*expected, *(16 + place for place in expected)])


def test_rows_and_columns_are_padded_alike() -> None:
    weight = np.random.default_rng(0).standard_normal((36, 5)).astype(np.float32)
    layout = HeadLayout(12, 6)
    np.testing.assert_array_equal(layout.pad_rows(weight).T, layout.pad_columns(weight.T))


def test_padding_of_the_tables_turns_nothing() -> None:
    table = RotaryTable.of(ROPES[0], HeadLayout(12, 12))
    cos, sin = table.cos(10), table.sin(10)
    assert cos.shape == sin.shape == (10, 8)
    assert (cos[:, 6:] == 1).all() and not sin[:, 6:].any()
    angles = 3 * inverse_frequencies(ROPES[0], 12)
    np.testing.assert_array_equal((cos[3, :6], sin[3, :6]), (np.cos(angles), np.sin(angles)))


LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [1.1, 2.0, 4.0],
    "factor": 8.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("stated", [{}, {"attention_factor": 1.7}, {"factor": 0.5}])
def test_longrope_up_to_the_original_length_is_that_of_transformers(stated: dict[str, Any]) -> None:
    rope = LONGROPE | stated
    config = LlamaConfig(**SIZES | {"head_dim": 6, "rope_parameters": dict(rope)})
    frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=64)
    table = RotaryTable.of(rope, HeadLayout(12, 6))
    np.testing.assert_allclose(table.frequencies[:3], frequencies.numpy(), rtol=3e-7)
    np.testing.assert_array_equal(table.amplitudes, np.array([*[factor] * 3, *[1] * 5], np.float32))


def test_longrope_of_another_number_of_pairs_is_refused() -> None:
    with pytest.raises(EngineError, match="3 values of short_factor for 4 rotary pairs"):
        inverse_frequencies(LONGROPE, 8)
