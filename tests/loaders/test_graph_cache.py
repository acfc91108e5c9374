"""A graph is served only for the very model that it was built from."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.graph_cache import cache_key, onnx_folder
from sgate_serve.loaders.logits import load_onnx
from sgate_serve.loaders.torch_model import TorchModel
from sgate_serve.onnx_format.names import GRAPH_FILE, META_IN_ROWS
from sgate_serve.onnx_format.precision import PRECISIONS
from tests.small_llama import dense_llama, random_tokens, save

TABLE = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return save(dense_llama(), tmp_path / "base")


@pytest.fixture
def own_graph(model: Checkpoint, tmp_path: Path) -> Checkpoint:
    convert(ConvertOptions(str(model.folder), tmp_path / "out", to=("hf", "onnx")))
    return Checkpoint.open(tmp_path / "out")


def zero_the_middle(model: Checkpoint) -> None:
    """Zero rows of the embedding in place, none of them among its first and last 4 KiB."""
    info = model.tensors[TABLE]
    with info.file.open("r+b") as stream:
        stream.seek(info.start + 4096)
        stream.write(bytes(info.num_bytes - 2 * 4096))


def edit_config(model: Checkpoint, **changes: object) -> None:
    path = model.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_edited_weights_get_a_graph_of_their_own(model: Checkpoint) -> None:
    old, tokens = onnx_folder(model), random_tokens(40)
    zero_the_middle(model)
    edited = Checkpoint.open(model.folder)
    assert edited.fingerprint == model.fingerprint
    assert onnx_folder(edited) != old
    engine = load_onnx(edited)
    expected = TorchModel.converted(model.folder).logits(tokens)
    np.testing.assert_allclose(engine.logits(tokens), expected, atol=1e-4)
    engine.close()


def test_another_builder_or_config_makes_another_graph(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {cache_key(model, PRECISIONS["fp32"])}
    for name, value in (("__version__", "0.0"), ("FORMAT_VERSION", 99)):
        monkeypatch.setattr(f"sgate_serve.loaders.graph_cache.{name}", value)
        keys.add(cache_key(model, PRECISIONS["fp32"]))
    edit_config(model, rms_norm_eps=0.5)
    keys.add(cache_key(Checkpoint.open(model.folder), PRECISIONS["fp32"]))
    keys.add(cache_key(model, replace(PRECISIONS["fp32"], int8_cache=True)))
    assert len(keys) == 5
    # Weights are rounded to 4 bits for a text, so for a tokenizer.
    before = {name: cache_key(model, PRECISIONS[name]) for name in ("int8", "int4")}
    (model.folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    after = {name: cache_key(model, PRECISIONS[name]) for name in before}
    assert after["int8"] == before["int8"] and after["int4"] != before["int4"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (zero_the_middle, "was built before config.json or weights of .* were edited; convert the"),
        (
            lambda model: edit_config(model, rms_norm_eps=0.5),
            "was built before config.json or weights of .* were edited; convert the model again",
        ),
        (
            lambda model: flip_a_bit(model.folder / "onnx" / "model.onnx.data"),
            r"model\.onnx\.data was edited or damaged after it was written with model.onnx; conve",
        ),
        (
            lambda model: (model.folder / "onnx" / "model.onnx.data").unlink(),
            r"model\.onnx\.data cannot be read: No such file",
        ),
    ],
    ids=["weights", "config", "graph data", "no graph data"],
)
def test_a_graph_in_the_folder_must_be_of_its_model(
    own_graph: Checkpoint, edit: Callable[[Checkpoint], None], message: str
) -> None:
    edit(own_graph)
    with pytest.raises(CheckpointError, match=message):
        onnx_folder(Checkpoint.open(own_graph.folder))


def test_an_edit_that_no_graph_depends_on_keeps_it(own_graph: Checkpoint) -> None:
    edit_config(own_graph, eos_token_id=[3, 4], id2label={"0": "yes", "1": "no"})
    assert onnx_folder(Checkpoint.open(own_graph.folder)) == own_graph.folder / "onnx"


def test_rows_are_for_cpus_with_vnni(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgate_serve.loaders.graph_cache.cpu_flags", lambda: ["avx512_vnni"])
    folders = [onnx_folder(model, "int8", is_for_cpu=is_for_cpu) for is_for_cpu in (True, False)]
    monkeypatch.setattr("sgate_serve.loaders.graph_cache.cpu_flags", lambda: ["avx2"])
    folders.append(onnx_folder(model, "int8"))
    graphs = [ir.load(folder / GRAPH_FILE) for folder in folders]
    assert [META_IN_ROWS in graph.metadata_props for graph in graphs] == [True, False, False]


def test_a_damaged_graph_in_the_cache_is_built_again(
    model: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    folder = onnx_folder(model)
    data = (folder / "model.onnx.data").read_bytes()
    flip_a_bit(folder / "model.onnx.data")
    with caplog.at_level(logging.WARNING):
        assert onnx_folder(model) == folder
    assert "was edited or damaged after it was written" in caplog.text
    assert "it is built again" in caplog.text
    assert (folder / "model.onnx.data").read_bytes() == data


def test_a_cached_folder_without_its_graph_is_replaced(model: Checkpoint) -> None:
    folder = onnx_folder(model)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "model.onnx").unlink()
    assert onnx_folder(model) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_a_graph_from_before_digests_is_compared_by_its_fingerprint(
    own_graph: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    path = own_graph.folder / "onnx" / "model.onnx"
    graph = ir.load(path)
    for key in ("digest", "weights_digest"):
        del graph.metadata_props[f"sgate.{key}"]
    path.write_bytes(ir.to_proto(graph).SerializeToString())
    with caplog.at_level(logging.WARNING):
        assert onnx_folder(own_graph) == path.parent
    assert (
        "only the first and last 4 KiB of each tensor are compared; convert the mo" in caplog.text
    )
