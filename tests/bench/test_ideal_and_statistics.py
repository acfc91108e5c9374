"""Ideal speedups counted by hand, and properties of intervals."""

from dataclasses import replace

import numpy as np
import pytest

from sgate_serve.architecture.shapes import LayerShape
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.bench.ideal import decode_bytes, decode_weights, ideal_speedup, prefill_flops
from sgate_serve.bench.statistics import median_with_interval
from sgate_serve.onnx_format.precision import PRECISIONS

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 10,
    "vocab_size": 32,
}
LINEARS = 2 * (2 * 8 * 16 + 2 * 8 * 8 + 3 * 8 * 10)
NORMS = 5 * 8


def spec_of(tied: bool) -> ModelSpec:
    return ModelSpec.from_config(CONFIG | {"tie_word_embeddings": tied}, "config.json")


@pytest.mark.parametrize("tied", [False, True])
def test_decode_reads_the_head_once_whether_tied_or_not(tied: bool) -> None:
    assert decode_weights(spec_of(tied)) == LINEARS + NORMS + 32 * 8


def test_prefill_counts_linears_attention_and_one_row_of_logits() -> None:
    attention = 2 * 2 * (4 * 4) * 100 * 100
    assert prefill_flops(spec_of(True), 100) == 2 * LINEARS * 100 + attention + 2 * 32 * 8


def test_ideal_is_the_ratio_to_a_smaller_model() -> None:
    dense = spec_of(True)
    half = replace(dense, layers=(dense.layers[0], LayerShape(0, 0, 4, 0)))
    ideal = ideal_speedup(dense, half, prefill_tokens=64)
    assert ideal.decode == pytest.approx(decode_weights(dense) / decode_weights(half))
    assert ideal.prefill == pytest.approx(prefill_flops(dense, 64) / prefill_flops(half, 64))
    assert ideal_speedup(dense, dense, 64) == ideal_speedup(half, half, 64)


def test_ideal_counts_bytes_where_head_and_blocks_differ() -> None:
    dense = spec_of(True)
    half = replace(dense, layers=(dense.layers[0], LayerShape(0, 0, 4, 0)))
    int4 = PRECISIONS["int4"]
    # A scale of 4 bytes per 128 weights, and for 4 bits a zero point.
    assert int4.bytes_inside == 0.5 + 4.5 / 128 and int4.bytes_outside == 1 + 4 / 128
    finer = 2 * (2 * 8 * 16 - 8 * 16 + 2 * 8 * 8 + 8 * 10)  # query, key, value and down
    by_hand = (LINEARS - finer) * int4.bytes_inside + 4 * NORMS
    by_hand += (finer + 32 * 8) * int4.bytes_outside
    assert decode_bytes(dense, int4) == pytest.approx(by_hand)
    assert decode_bytes(dense, PRECISIONS["fp16"]) == 2 * decode_weights(dense)
    plain, same = ideal_speedup(dense, half, 64), ideal_speedup(dense, half, 64, (int4, int4))
    # The head weighs more if the blocks have 4 bits.
    assert 1 < same.decode < plain.decode and same.prefill == plain.prefill
    mixed = ideal_speedup(dense, half, 64, (PRECISIONS["fp32"], int4))
    assert mixed.decode == pytest.approx(4 * decode_weights(dense) / decode_bytes(half, int4))


def test_interval_holds_the_median_narrows_and_is_seeded() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1.4, 0.1, 400).tolist()
    few, many = median_with_interval(values[:10], 0), median_with_interval(values, 0)
    for estimate in (few, many):
        assert estimate.low <= estimate.median <= estimate.high
    assert many.high - many.low < few.high - few.low
    assert many.low < 1.4 < many.high
    assert median_with_interval(values, 0) == many
    assert median_with_interval([2.0], 0).low == 2.0
