"""Int8 products by rows on CPUs without VNNI: the same bits, by unsigned weights."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.to_onnx import write_onnx, writer
from sgate_serve import environment
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.integer_products import PRODUCT, with_unsigned_weights
from sgate_serve.engines.onnx.pooling_runner import OnnxPoolingRunner, TokenRow
from sgate_serve.engines.runner import all_logits
from sgate_serve.onnx_format.names import GRAPH_FILE
from sgate_serve.onnx_format.precision import precision_named
from tests.converters.test_to_onnx_precision import SIZES
from tests.families.zoo import ZOO, build
from tests.small_llama import random_tokens


@pytest.fixture(autouse=True)
def _as_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "suits_this_cpu", lambda: True)


def logits(folder: Path) -> Floats:
    return all_logits(load_runner(folder, SIZES), random_tokens(20))


def hidden_states(folder: Path) -> Floats:
    return OnnxPoolingRunner.load(folder, 1).forward([TokenRow(np.arange(2, 20))])[0]


@pytest.mark.parametrize(("family", "values"), [("llama", logits), ("bert", hidden_states)])
def test_every_cpu_computes_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    family: str,
    values: Callable[[Path], Floats],
) -> None:
    caplog.set_level(logging.INFO)
    build(ZOO[family][0], seed=0).save_pretrained(tmp_path / "model")
    model, folder = Checkpoint.open(tmp_path / "model"), tmp_path / "onnx"
    write_onnx(model, folder, precision_named("int8", is_encoder=model.spec.is_encoder))
    expected = values(folder)
    assert "VNNI" not in caplog.text
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx avx2 fma\n")
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    np.testing.assert_array_equal(values(folder), expected)
    assert "this CPU has no VNNI" in caplog.text


def test_unsigned_weights_are_the_only_change(tmp_path: Path) -> None:
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path / "model")
    write_onnx(Checkpoint.open(tmp_path / "model"), tmp_path, precision_named("int8"))
    graph = (tmp_path / GRAPH_FILE).read_bytes()
    before, after = (
        onnx.load_model_from_string(each).graph for each in (graph, with_unsigned_weights(graph))
    )
    added = [node.op_type for node in after.node if node.op_type in ("Cast", "BitwiseXor")]
    products = [node for node in after.node if node.op_type == PRODUCT]
    assert added == ["Cast", "BitwiseXor"] * len(products) and products
    assert all(node.input[5] == node.input[4] for node in products)
    assert [each.name for each in before.output] == [each.name for each in after.output]
