"""The KV cache in floats and in int8, where a graph has none; the contract suite has the rest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.convert import ConvertOptions, convert
from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.runner import all_logits
from sgate_serve.loaders.serving import load_slot_engine
from sgate_serve.onnx_format.precision import PRECISIONS
from tests.small_llama import dense_llama, random_tokens, save


def test_a_graph_in_rows_can_hold_int8(tmp_path: Path) -> None:
    model = save(dense_llama(hidden_size=64), tmp_path / "model")
    in_rows = replace(PRECISIONS["int8"], in_rows=True)
    for name, precision in (("floats", in_rows), ("int8", replace(in_rows, int8_cache=True))):
        write_onnx(model, tmp_path / name, precision)
    found, expected = (
        load_runner(tmp_path / name, OnnxOptions(slots=1, max_model_len=32, threads=1))
        for name in ("int8", "floats")
    )
    tokens = random_tokens(9)
    logits = all_logits(found, tokens, 9), all_logits(expected, tokens, 9)
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[1]).max()


def test_a_model_without_attention_has_no_cache_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    dense = dense_llama()
    for layer in dense.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    source = save(dense, tmp_path / "model").folder
    convert(ConvertOptions(str(source), tmp_path / "out"))
    model = Checkpoint.open(tmp_path / "out")
    assert not any(layer.num_heads for layer in model.spec.layers)
    tokens = random_tokens(9)
    found = []
    for cache in ("auto", "int8"):
        options = OnnxOptions(slots=2, max_model_len=32, threads=1, kv_cache_dtype=cache)
        engine = load_slot_engine("onnx", model, options)
        found.append(engine.logits(tokens))
        engine.close()
    np.testing.assert_array_equal(found[0], found[1])
