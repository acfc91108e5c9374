"""Int8 products in rows on CPUs without VNNI: the same bits, by unsigned weights."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from converters.to_onnx import write_onnx
from sgate_serve import environment
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.model_protocols import Floats
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.onnx.integer_products import PRODUCT, adds_exactly, with_unsigned_weights
from sgate_serve.engines.onnx.pooling_runner import OnnxPoolingRunner, TokenRow
from sgate_serve.engines.runner import all_logits
from sgate_serve.onnx_format.names import GRAPH_FILE, IR_VERSION, MICROSOFT, OPSET
from sgate_serve.onnx_format.precision import precision_named, suited_to
from tests.converters.test_to_onnx_precision import SIZES
from tests.families.zoo import ZOO, build
from tests.small_llama import random_tokens


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
    if not adds_exactly():
        pytest.skip("this CPU has no other way to compare with")
    caplog.set_level(logging.INFO)
    build(ZOO[family][0], seed=0).save_pretrained(tmp_path / "model")
    model, folder = Checkpoint.open(tmp_path / "model"), tmp_path / "onnx"
    held = precision_named("int8", is_encoder=model.spec.is_encoder)
    write_onnx(model, folder, suited_to(held, {"amx_int8"}))
    expected = values(folder)
    assert "VNNI" not in caplog.text
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx avx2 fma\n")
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    np.testing.assert_array_equal(values(folder), expected)
    assert "this CPU is not known to have VNNI" in caplog.text


def test_large_sums_of_unsigned_weights_do_not_saturate() -> None:
    """Pairs of these products are far beyond 16 bits."""
    weight = np.array([[127, -127], [127, 127], [-128, 3]], np.int8)
    fixed = {"weight": weight, "one": np.float32(1), "zero": np.uint8(128)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                PRODUCT, ["x", "weight", "one", "one", "zero"], ["y"], domain=MICROSOFT
            )
        ],
        "products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["t", 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["t", 2])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in fixed.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    session = ort.InferenceSession(with_unsigned_weights(model.SerializeToString()))
    x = np.array([[255, 255, 0], [0, 255, 7]], np.uint8)
    expected = (x.astype(np.int64) - 128) @ weight.astype(np.int64)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_unsigned_weights_are_the_only_change(tmp_path: Path) -> None:
    build(ZOO["llama"][0], seed=0).save_pretrained(tmp_path / "model")
    held = suited_to(precision_named("int8"), {"amx_int8"})
    write_onnx(Checkpoint.open(tmp_path / "model"), tmp_path, held)
    graph = (tmp_path / GRAPH_FILE).read_bytes()
    before, after = (
        onnx.load_model_from_string(each).graph for each in (graph, with_unsigned_weights(graph))
    )
    added = [node.op_type for node in after.node if node.op_type in ("Cast", "BitwiseXor")]
    products = [node for node in after.node if node.op_type == PRODUCT]
    assert added == ["Cast", "BitwiseXor"] * len(products) and products
    assert all(node.input[5] == node.input[4] for node in products)
    assert [each.name for each in before.output] == [each.name for each in after.output]
