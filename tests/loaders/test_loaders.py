"""Loading model folders: graphs for the onnx engine, models to be timed or to read logits from."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.engine_options import OnnxOptions, PoolingOptions, SlotOptions
from sgate_serve.engines.model_protocols import EngineModel
from sgate_serve.engines.onnx.engine import load_runner
from sgate_serve.engines.timed import TimedSizes, TimedSlotEngine
from sgate_serve.engines.vllm.precision import held_precision
from sgate_serve.errors import EngineError
from sgate_serve.loaders.graph_cache import cache_key, graph_precision, onnx_folder
from sgate_serve.loaders.logits import load_logits_model, load_onnx, rounding_of
from sgate_serve.loaders.serving import load_pooling_engine, load_slot_engine
from sgate_serve.loaders.timing import (
    load_timed,
    load_timed_pooling,
    timed_options,
    timed_pooling_options,
)
from sgate_serve.onnx_format.precision import ENCODER_PRECISIONS, PRECISIONS, Precision
from tests.bench import stub_engine
from tests.families.zoo import ZOO, build
from tests.small_llama import dense_llama, save

SIZES = TimedSizes(batch=3, model_len=20)
INT4, INT8 = ("--precision", "int4"), ("--precision", "int8")


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return save(dense_llama(), tmp_path / "base")


def test_slot_engine_is_timed_by_its_slots(model: Checkpoint) -> None:
    timed = load_timed("torch", model, SIZES)
    assert isinstance(timed, TimedSlotEngine)
    assert timed.max_model_len == 20


def test_row_with_a_timed_class_is_loaded_by_it(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = stub_engine.install(monkeypatch)
    timed = load_timed("stub", model, TimedSizes(3, 20, threads=2), ["--any", "7"])
    assert [id(loaded) for loaded in loads] == [id(timed)]
    assert loads[0] == stub_engine.StubTimed(model.folder, 3, 20, 2, ("--any", "7"))


def test_sizes_become_options_of_a_slot_engine() -> None:
    assert timed_options("onnx", SIZES, []) == OnnxOptions(slots=3, max_model_len=20)
    sizes = TimedSizes(3, 20, threads=2)
    assert timed_options("onnx", sizes, []) == OnnxOptions(3, 20, threads=2)
    assert timed_options("onnx", SIZES, ["--threads", "2"]) == OnnxOptions(3, 20, threads=2)


def built(model: Checkpoint, precision: str | None = None) -> dict[str, str]:
    """Return the metadata of the graph that the onnx engine loads."""
    return dict(ir.load(onnx_folder(model, precision) / "model.onnx").metadata_props)


def test_a_graph_is_built_once_for_each_precision(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    folders = {name: onnx_folder(model, name) for name in PRECISIONS}
    assert len(set(folders.values())) == len(PRECISIONS)
    for name, folder in folders.items():
        assert onnx_folder(model, name) == folder
        found = built(model, name)
        assert found["sgate.precision"] == name
        assert found["sgate.block"] == str(PRECISIONS[name].block or 0)
    assert onnx_folder(model) == folders["fp32"]
    # Another block size is another graph.
    wider = replace(PRECISIONS["int8"], block=128)
    assert cache_key(model, wider) != cache_key(model, PRECISIONS["int8"])


def test_own_graph_is_taken_where_its_precision_is_wanted(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    source, out = str(model.folder), tmp_path / "out"
    convert(ConvertOptions(source, out, to=("hf", "onnx"), precision="int4"))
    int4 = Checkpoint.open(out)
    assert {info.dtype for info in int4.tensors.values()} == {"F32"}
    assert onnx_folder(int4) == onnx_folder(int4, "int4") == out / "onnx"
    assert not (tmp_path / "cache").exists()
    assert built(int4, "fp32")["sgate.precision"] == "fp32"
    assert built(int4)["sgate.precision"] == "int4"


def test_int8_folders_are_int8_graphs_unless_told_otherwise(
    model: Checkpoint, tmp_path: Path
) -> None:
    convert(ConvertOptions(str(model.folder), tmp_path / "out", precision="int8"))
    int8 = Checkpoint.open(tmp_path / "out")
    assert built(int8)["sgate.precision"] == "int8"
    assert built(int8, "fp32")["sgate.precision"] == "fp32"
    convert(
        ConvertOptions(str(model.folder), tmp_path / "both", to=("hf", "onnx"), precision="int8")
    )
    assert onnx_folder(Checkpoint.open(tmp_path / "both")) == tmp_path / "both" / "onnx"


def test_a_graph_from_before_precisions_is_fp32(model: Checkpoint, tmp_path: Path) -> None:
    convert(ConvertOptions(str(model.folder), tmp_path / "out", to=("hf", "onnx")))
    path = tmp_path / "out" / "onnx" / "model.onnx"
    graph = ir.load(path)
    for key in ("precision", "block", "row_multiple"):
        del graph.metadata_props[f"sgate.{key}"]
    path.write_bytes(ir.to_proto(graph).SerializeToString())
    old = Checkpoint.open(tmp_path / "out")
    assert graph_precision(old) == PRECISIONS["fp32"]
    assert onnx_folder(old, "fp32") == tmp_path / "out" / "onnx"
    load_runner(tmp_path / "out" / "onnx", OnnxOptions(slots=1, max_model_len=8))


def test_a_graph_alone_has_one_precision(model: Checkpoint) -> None:
    folder = onnx_folder(model, "int8")
    with pytest.raises(EngineError, match=r"is a graph in int8, not in int4; give the model fol"):
        load_runner(folder, OnnxOptions(precision="int4"))
    with pytest.raises(
        EngineError, match=r"a KV cache in fp32, not in int8; give the model folder"
    ):
        load_runner(folder, OnnxOptions(kv_cache_dtype="int8"))


def test_a_loaded_model_names_its_engine_and_the_precision_of_its_matrices(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    convert(ConvertOptions(str(model.folder), tmp_path / "out", precision="int8"))
    int8 = Checkpoint.open(tmp_path / "out")
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    bert = Checkpoint.open(tmp_path / "bert")
    cases: list[tuple[EngineModel, str, Precision]] = [
        (load_timed("onnx", model, SIZES), "onnx", PRECISIONS["fp32"]),
        (load_timed("onnx", model, SIZES, INT4), "onnx", PRECISIONS["int4"]),
        (load_timed("onnx", int8, SIZES), "onnx", PRECISIONS["int8"]),
        (load_timed("torch", int8, SIZES), "torch", PRECISIONS["fp32"]),
        (load_timed_pooling("onnx", bert, SIZES, INT8), "onnx", ENCODER_PRECISIONS["int8"]),
        (load_logits_model("onnx", int8, 8), "onnx", PRECISIONS["int8"]),
        (load_logits_model("torch", int8, 8), "torch", PRECISIONS["fp32"]),
        (load_logits_model("onnx", bert, 8), "onnx", PRECISIONS["fp32"]),
    ]
    versions = {"onnx": version("onnxruntime"), "torch": version("torch")}
    for loaded, engine, precision in cases:
        found = (loaded.name, loaded.version, loaded.precision)
        assert found == (engine, versions[engine], precision)
        loaded.close()
    assert held_precision(int8, "float32") == Precision("int8", bits=8, outer_bits=32)
    assert held_precision(model, "bfloat16") == Precision("BF16", bits=16, outer_bits=16)


def test_weights_of_an_int8_folder_stay_rounded_in_floats(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    convert(ConvertOptions(str(model.folder), tmp_path / "out", precision="int8"))
    int8 = Checkpoint.open(tmp_path / "out")
    assert rounding_of(int8, load_logits_model("torch", int8, 8)) == "int8"
    assert rounding_of(int8, load_onnx(int8, "fp32")) == "int8"
    assert rounding_of(int8, load_onnx(int8, "fp16")) == "fp16"
    assert rounding_of(model, load_logits_model("torch", model, 8)) == "fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slots", "3"], "engine onnx: --slots cannot be set here: the largest of --batches"),
        (["--max-model-len", "64"], "--max-model-len cannot be set here: the lengths of the work"),
        (["--prefill-chunk", "4"], "--prefill-chunk cannot be set here: a timed prompt is proc"),
        (["--threads", "4"], r"--threads is given before `--` \(2\) and after it \(4\)"),
        (["--gpus", "2"], "engine onnx: unrecognized arguments: --gpus 2"),
    ],
)
def test_arguments_that_the_sizes_decide_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        timed_options("onnx", TimedSizes(3, 20, threads=2), arguments)


def test_each_kind_of_model_has_its_own_loader(model: Checkpoint, tmp_path: Path) -> None:
    build(ZOO["bert"][1], seed=0).save_pretrained(tmp_path / "bert")
    classifier = Checkpoint.open(tmp_path / "bert")
    with pytest.raises(EngineError, match="is a LlamaForCausalLM, which generates text; give a cl"):
        load_pooling_engine("onnx", model, PoolingOptions())
    with pytest.raises(EngineError, match="is a BertForSequenceClassification, which does not gen"):
        load_slot_engine("onnx", classifier, SlotOptions())
    with pytest.raises(EngineError, match="engine torch does not run classifiers or embedding mo"):
        load_pooling_engine("torch", classifier, PoolingOptions())


def test_sizes_become_options_of_an_encoder() -> None:
    found = timed_pooling_options("onnx", SIZES, ["--threads", "2"])
    assert found == PoolingOptions(max_model_len=20, threads=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-tokens", "9"], "--batch-tokens cannot be set here: --batches and --prefill-t"),
        (["--max-model-len", "64"], "--max-model-len cannot be set here: --prefill-tokens decide"),
        (["--threads", "4"], r"--threads is given before `--` \(2\) and after it \(4\)"),
        (["--slots", "4"], "engine onnx: unrecognized arguments: --slots 4"),
    ],
)
def test_arguments_that_the_sizes_of_an_encoder_decide(arguments: list[str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        timed_pooling_options("onnx", TimedSizes(3, 20, threads=2), arguments)
