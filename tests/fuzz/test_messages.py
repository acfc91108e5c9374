"""The messages for malformed files: one test for each reason."""

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgate_serve.architecture.config_kinds import DECIMAL
from sgate_serve.architecture.rope import Rope
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, read_header
from sgate_serve.checkpoint.writer import TensorHeader, write_tensors
from sgate_serve.errors import CheckpointError, GatesError, PlanError
from sgate_serve.gates import DELTAS_FILE, GATES_FILE, Gates
from sgate_serve.plan import PLAN_FILE, Plan, Target
from sgate_serve.plan.figures import removed
from sgate_serve.plan.json_form import read_plan, write_plan
from sgate_serve.reports.inspection import Inspection
from sgate_serve.verify.certificate import CERTIFICATE_FILE
from tests.fuzz.model_folders import CERTIFICATE, CONFIG, Folders, write_folders

DOWN_BIAS = "model.layers.1.mlp.down_proj.bias"
NORM = "model.norm.weight"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return write_folders(tmp_path)


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(value), encoding="utf-8")


def write_header(path: Path, header: Any, num_bytes: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return path


def entry(start: Any, end: Any, shape: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "8"}, "hidden_size must be a whole number of at least 1, found '8'"),
        ({"vocab_size": True}, "vocab_size must be a whole number of at least 1, found True"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, found 0"),
        ({"head_dim": 10**30}, "head_dim must be a whole number, found 1000"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({"rms_norm_eps": "tiny"}, f"rms_norm_eps must be {DECIMAL.words}, found 'tiny'"),
        ({"rms_norm_eps": float("nan")}, f"rms_norm_eps must be {DECIMAL.words}, found nan"),
        ({"rms_norm_eps": 10**400}, f"rms_norm_eps must be {DECIMAL.words}, found 1000"),
        ({"rms_norm_eps": 1}, f"rms_norm_eps must be {DECIMAL.words}, found 1"),
        ({"tie_word_embeddings": "false"}, "must be true or false, found 'false'"),
        ({"hidden_act": ["silu"]}, r"hidden_act must be the name of an act.*, found \['silu'\]"),
        ({"hidden_act": "prelu"}, "hidden_act must be the name of an activation without weights"),
        ({"model_type": []}, r"model_type must be a string, found \[\]"),
        ({"rope_parameters": "linear"}, "rope_parameters must be an object, found 'linear'"),
        (
            {"rope_parameters": {"rope_theta": "x"}},
            "rope_parameters: rope_theta must be a positive number, found 'x'",
        ),
        (
            {"rope_parameters": {"full_attention": 1}},
            "rope_parameters: full_attention must be an object, found 1",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": "x"}}},
            r"rope_parameters\[sliding_attention\]: rope_theta must be a positive number, found",
        ),
        (
            {"model_type": "gemma2", "query_pre_attn_scalar": 0},
            "query_pre_attn_scalar must be a whole number of at least 1, found 0",
        ),
        ({"num_labels": 0}, "num_labels must be a whole number of at least 1, found 0"),
        ({"num_labels": "2"}, "num_labels must be a whole number of at least 1, found '2'"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers of 2"),
        ({"layer_types": [1, 2]}, r"layer_types must be a list of strings, found \[1, 2\]"),
        ({"per_layer_config": []}, r"per_layer_config must be an object, found \[\]"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config holds 'x'; expected the number of a"),
        ({"per_layer_config": {"0": 1}}, "per_layer_config: 0 must be an object, found 1"),
        ({"per_layer_config": {"0": {}, "00": {}}}, "names a layer twice; keep one entry"),
        (
            {"per_layer_config": {"0": {"skip": "mlp"}}},
            r'per_layer_config\[0\]: skip must be a list of "attention" and "mlp", found \'mlp\'',
        ),
        (
            {"per_layer_config": {"1": {"head_dim": -2}}},
            r"per_layer_config\[1\]: head_dim must be a whole number, found -2",
        ),
        ({"sgate": {"extra_biases": 3}}, "sgate: extra_biases must be a list of strings, found 3"),
        (
            {"sgate": {"extra_biases": ["frob"]}},
            "sgate.extra_biases names 'frob', which is not a linear of this model",
        ),
    ],
)
def test_config_fields_of_another_type(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"a/config.json: .*{message}"):
        ModelSpec.from_config(CONFIG | change, "a/config.json")


def test_null_is_read_where_transformers_reads_it_and_refused_elsewhere() -> None:
    nulls = {"head_dim": None, "num_key_value_heads": None, "rope_parameters": {"factor": None}}
    spec = ModelSpec.from_config(CONFIG | nulls | {"per_layer_config": {"0": None}}, "config.json")
    rope = Rope({"rope_theta": 10000.0, "rope_type": "default", "factor": None})
    assert spec.ropes == (rope,) * len(spec.layers)
    assert spec.has_uniform_layers and spec.layers[0].num_kv_heads == 4
    for field in ("rms_norm_eps", "tie_word_embeddings", "vocab_size"):
        with pytest.raises(CheckpointError, match=f"a/config.json: {field} must be .*, found null"):
            ModelSpec.from_config(CONFIG | {field: None}, "a/config.json")
    for null in ({"rope_theta": None}, {"rope_parameters": {"rope_theta": None}}):
        with pytest.raises(CheckpointError, match="rope_type 'default' needs rope_theta; without"):
            ModelSpec.from_config(CONFIG | {"rope_parameters": None} | null, "a/config.json")


@pytest.mark.parametrize("name", ["config.json", PLAN_FILE, CERTIFICATE_FILE])
def test_json_nested_beyond_reason(folders: Folders, name: str) -> None:
    (folders.pruned / name).write_text("[" * 10**5 + "]" * 10**5)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read as JSON: maximum recursion"):
        Inspection.of(folders.pruned)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../x.safetensors", r"is in '\.\./x\.safetensors'; expected the name of a file next to"),
        ("/x.safetensors", "expected the name of a file next to the index"),
        ("x" * 300, "expected the name of a file next to the index"),
        ("x\n.safetensors", r"is in 'x\\n.safetensors'; expected the name of a file next to"),
        (["x.safetensors"], r"is in \['x.safetensors'\]; expected the name of a file next to"),
        (None, "is in None; expected the name of a file next to"),
        ("..", r"/\.\. cannot be read: Is a directory"),
    ],
)
def test_index_that_names_a_missing_file(folders: Folders, shard: Any, message: str) -> None:
    index = folders.shards / INDEX_FILE
    weight_map = json.loads(index.read_bytes())["weight_map"]
    edit_json(index, weight_map=weight_map | {NORM: shard})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folders.shards)


def test_index_of_a_tensor_that_its_shard_lacks(folders: Folders) -> None:
    index = folders.shards / INDEX_FILE
    weight_map = json.loads(index.read_bytes())["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[NORM])
    edit_json(index, weight_map=weight_map | {NORM: other})
    with pytest.raises(CheckpointError, match=rf"{other} lacks tensor '{NORM}', which the index"):
        Checkpoint.open(folders.shards)


def test_tensor_in_two_shards(folders: Folders) -> None:
    index, second = folders.shards / INDEX_FILE, "model-99.safetensors"
    headers = [TensorHeader(NORM, "F32", (8,))]
    write_tensors(folders.shards / second, headers, [np.ones(8, np.float32)], {})
    weight_map = json.loads(index.read_bytes())["weight_map"]
    edit_json(index, weight_map=weight_map | {"copy": second})
    with pytest.raises(CheckpointError, match=rf"tensor {NORM} is in .* and in {second}; keep it"):
        Checkpoint.open(folders.shards)


@pytest.mark.parametrize(
    ("header", "num_bytes", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "tensor b overlaps the one before"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "tensor b leaves a gap before it"),
        ({"a": entry(0, 8, [2])}, 12, "4 bytes belong to no tensor"),
        ({"a\x1b[2J": entry(0, 8, [2])}, 8, r"name 'a\\x1b\[2J' is too long or holds control"),
        ({"a": entry(0, 4, [1] * 9)}, 4, "shape is not a list of at most 8 sizes"),
        ({"a": entry(0, 4, "1")}, 4, "shape is not a list of at most 8 sizes"),
        ({"a": entry(0, 4, [1.0])}, 4, "size or offset is negative or is not an integer"),
        (
            {"a": entry(0, float("inf"), [1])},
            4,
            "size or offset is negative or is not an integer",
        ),
        ({"a": entry(0, 0, [0, 2**39])}, 0, "sizes beyond any model"),
        (b'{"a":' * 10**5, 0, "maximum recursion depth"),
    ],
)
def test_headers_that_are_not_safetensors(
    tmp_path: Path, header: Any, num_bytes: int, message: str
) -> None:
    file = write_header(tmp_path / "x.safetensors", header, num_bytes)
    expected = rf"x\.safetensors: malformed safetensors header \(.*{message}"
    with pytest.raises(CheckpointError, match=expected):
        read_header(file)


def test_a_weights_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).mkdir()
    with pytest.raises(CheckpointError, match=r"safetensors cannot be read: Is a directory"):
        read_header(tmp_path / SINGLE_FILE)


def test_claimed_sizes_are_never_allocated(tmp_path: Path) -> None:
    claims = [tmp_path / name for name in ("length", "tensor", "offsets")]
    claims[0].write_bytes((2**60).to_bytes(8, "little") + b"{}" * 8)
    write_header(claims[1], {"a": entry(0, 2**40, [2**38])})
    write_header(claims[2], {"a": entry(2**60, 2**60 + 4, [1])})
    tracemalloc.start()
    try:
        for file in claims:
            with pytest.raises(CheckpointError, match=re.escape(str(file))):
                read_header(file)
        with pytest.raises(CheckpointError, match="num_hidden_layers must be"):
            ModelSpec.from_config(CONFIG | {"num_hidden_layers": 2**39}, "config.json")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format 'other' version 2, expected sgate-plan version 2"),
        ({"version": 1}, "format 'sgate-plan' version 1, expected sgate-plan version 2"),
        ({"dense_hidden": float("inf")}, "dense_hidden must be a whole number, found inf"),
        ({"family": []}, r"family must be a string, found \[\]"),
        ({"extra_biases": "abc"}, "extra_biases must be a list of strings, found 'abc'"),
        ({"layers": [{"dense": []}]}, r"layers\[0\]\.index is missing; convert the base again"),
        (
            {"layers": [{"index": 0, "dense": {"num_heads": True}}]},
            "num_heads must be a whole number",
        ),
    ],
)
def test_plans_of_another_type(folders: Folders, change: dict[str, Any], message: str) -> None:
    path = folders.pruned / PLAN_FILE
    edit_json(path, **change)
    with pytest.raises(PlanError, match=f"{path} is not a plan of this release: .*{message}"):
        read_plan(path)


def test_plan_indices_that_are_not_integers(folders: Folders) -> None:
    path = folders.pruned / PLAN_FILE
    layers = json.loads(path.read_bytes())["layers"]
    layers[1]["mlp_units"] = [0, 1.5]
    edit_json(path, layers=layers)
    with pytest.raises(PlanError, match=r"mlp_units must be a list of whole numbers, found \[0, 1"):
        read_plan(path)


def test_plan_of_another_folder_is_named_with_its_file(folders: Folders) -> None:
    path = folders.pruned / PLAN_FILE
    plan = read_plan(path)
    write_plan(replace(plan, layers=plan.layers[:1]), path)
    with pytest.raises(PlanError, match=f"{path}: the plan's widths are not those of config.json"):
        Inspection.of(folders.pruned)
    write_plan(replace(plan, family="bert"), path)
    with pytest.raises(PlanError, match=f"{path} is for 2 layers of bert, the checkpoint has 2"):
        Inspection.of(folders.pruned)


def test_removed_fraction_of_a_model_without_blocks_is_zero() -> None:
    layers = {str(index): {"skip": ["attention", "mlp"]} for index in range(2)}
    spec = ModelSpec.from_config(CONFIG | {"per_layer_config": layers}, "config.json")
    assert removed(Plan("llama", "", Target(), (), 8, 8, 0, 0), spec) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_abs_diff": "small"}, "max_abs_diff must be a number, found 'small'"),
        ({"max_abs_diff": None}, "lacks max_abs_diff; run `sgate verify` again"),
        ({"passed": "yes"}, "passed must be true or false, found 'yes'"),
        ({"engine": 3}, "engine must be a string, found 3"),
        ({"quantization": 3}, "quantization must be an object, found 3"),
        ({"quantization": {"precision": "int8"}}, "quantization lacks max_abs_diff; run `sgate v"),
        (
            {"quantization": {"precision": "int8", "max_abs_diff": 1, "mean_kl": "small"}},
            "quantization: mean_kl must be a number, found 'small'",
        ),
    ],
)
def test_malformed_certificates(folders: Folders, change: dict[str, Any], message: str) -> None:
    path = folders.pruned / CERTIFICATE_FILE
    edit_json(path, **change)
    with pytest.raises(CheckpointError, match=rf"{path}.*{message}"):
        Inspection.of(folders.pruned)


def test_certificate_with_a_nan_difference(folders: Folders) -> None:
    failed = replace(CERTIFICATE, passed=False, max_abs_diff=float("nan"))
    edit_json(folders.pruned / CERTIFICATE_FILE, **failed.to_json())
    assert "verification FAILED" in list(Inspection.of(folders.pruned).lines())[-1]


def test_gates_metadata_that_is_not_a_string(folders: Folders) -> None:
    file = write_header(folders.gates / GATES_FILE, {"__metadata__": {"version": 1}})
    with pytest.raises(GatesError, match=f"{file}: malformed safetensors header"):
        Gates.read(folders.gates)


def test_errors_in_deltas_name_their_file(folders: Folders) -> None:
    file = folders.gates / DELTAS_FILE
    write_header(file, {DOWN_BIAS: entry(0, 32, [8])}, 31)
    with pytest.raises(GatesError, match=f"{file} is truncated: tensor {DOWN_BIAS}"):
        Gates.read(folders.gates)
