"""The gates folder: round trip, folding, and one test for each way it can be wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.checkpoint.writer import TensorHeader, new_folder, write_tensors
from sgate_serve.errors import CheckpointError, GatesError
from sgate_serve.gates import DELTAS_FILE, GATES_FILE, Gates
from sgate_serve.gates.order import ORDER_FILE, num_steps

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 6,
    "vocab_size": 11,
    "tie_word_embeddings": True,
}
UNITS = "model.layers.0.mlp_units"


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    folder, rng = tmp_path / "base", np.random.default_rng(0)
    shapes = ModelSpec.from_config(CONFIG, "config.json").tensor_shapes()
    headers = [TensorHeader(name, "F32", shape) for name, shape in shapes.items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", CONFIG)
        arrays = (rng.standard_normal(shape).astype(np.float32) for shape in shapes.values())
        writer.write_weights(headers, arrays, 2**30)
    return Checkpoint.open(folder)


def make_gates(base: Checkpoint, **values: Array) -> Gates:
    keys = {name.replace("__", "."): value for name, value in values.items()}
    return Gates("by hand", "llama", "coupled", base.fingerprint, keys or {UNITS: floats(*[1] * 6)})


def stored(folder: Path, gates: Gates, deltas: dict[str, Array] | None = None) -> Gates:
    gates.write(folder, deltas)
    return Gates.read(folder)


def test_a_folder_reads_back_what_was_written(base: Checkpoint, tmp_path: Path) -> None:
    values = {UNITS: floats(0, 1, 0.5, 1, 0, 1), "model.layers.1.kv_groups": floats(0, 1)}
    weight = np.full((16, 6), 0.25, np.float32)
    gates = replace(make_gates(base), values=values)
    gates.write(tmp_path / "g", {"model.layers.0.mlp.down_proj.weight": weight})
    for location in (tmp_path / "g", tmp_path / "g" / GATES_FILE):
        found = Gates.read(location)
        assert (found.method, found.family, found.granularity) == ("by hand", "llama", "coupled")
        assert found.base_fingerprint == base.fingerprint
        assert found.values.keys() == values.keys()
        assert all(np.array_equal(found.values[key], values[key]) for key in values)
        np.testing.assert_array_equal(
            found.deltas["model.layers.0.mlp.down_proj.weight"].read(), weight
        )
        found.check(base)


def test_rewriting_keeps_the_deltas_that_are_not_replaced(base: Checkpoint, tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    old = {name: np.full((16, 6), 1, np.float32) for name in names}
    first = stored(tmp_path / "a", make_gates(base), old)
    second = stored(tmp_path / "b", first, {names[1]: np.full((16, 6), 2, np.float32)})
    assert [second.deltas[name].read().max() for name in names] == [1, 2]


def test_coupled_keys_fold_into_columns_and_multiply(base: Checkpoint) -> None:
    heads, groups = floats(1, 0.5, 1, 0), floats(0.5, 1)
    gates = replace(
        make_gates(base),
        values={
            "model.layers.0.heads": heads,
            "model.layers.0.kv_groups": groups,
            UNITS: floats(0, 1, 1, 1, 1, 0.5),
            "model.layers.0.mlp.down_proj.columns": floats(1, 1, 0, 1, 1, 0.5),
            "model.layers.1.self_attn.q_proj.rows": floats(*[0] * 16),
        },
    )
    masks = gates.masks(base.spec)
    # head 1 shares KV group 0 with head 0; each head is 4 columns wide.
    expected = np.repeat(floats(0.5, 0.25, 1, 0), 4)
    np.testing.assert_array_equal(masks["model.layers.0.self_attn.o_proj"].columns, expected)
    down = masks["model.layers.0.mlp.down_proj"].columns
    np.testing.assert_array_equal(down, floats(0, 1, 0, 1, 1, 0.25))
    query = masks["model.layers.1.self_attn.q_proj"]
    assert query.columns is None and query.rows is not None and not query.rows.any()


def test_deltas_may_add_a_bias_to_a_block_linear(base: Checkpoint, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj"
    bias = {f"{name}.bias": np.ones(16, np.float32)}
    gates = stored(tmp_path / "g", make_gates(base), bias)
    gates.check(base)
    assert gates.spec(base.spec).extra_biases == {name}


def test_a_folder_without_gates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatesError, match=r"gates\.safetensors is missing; give a gates folder"):
        Gates.read(tmp_path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    headers = [TensorHeader(UNITS, "F32", (6,))]
    write_tensors(tmp_path / GATES_FILE, headers, [floats(*[1] * 6)], {"format": "pt"})
    with pytest.raises(GatesError, match=r"format 'pt' version None .* reads sgate-gates version"):
        Gates.read(tmp_path)


def test_incomplete_metadata_is_refused(tmp_path: Path) -> None:
    metadata = {"format": "sgate-gates", "version": "1", "method": "m", "family": "llama"}
    write_tensors(tmp_path / GATES_FILE, [], [], metadata)
    with pytest.raises(GatesError, match=r"lacks granularity; .*`sgate inspect BASE --json`"):
        Gates.read(tmp_path)


def test_a_truncated_file_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    make_gates(base).write(tmp_path / "g")
    file = tmp_path / "g" / GATES_FILE
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(GatesError, match=r"gates\.safetensors is truncated"):
        Gates.read(file)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(6, np.float16), r"mlp_units is float16 of shape \[6\]; gates are stored as fp32"),
        (np.ones((1, 6), np.float32), r"is float32 of shape \[1, 6\]"),
        (floats(1, 1, 1, 1, 1, np.nan), "holds NaN or infinity; train again"),
        (floats(1, 1, 1, 1, 1, 1.5), r"spans 1 to 1\.5; store read-outs in \[0, 1\]"),
        (floats(1, 1, 1, 1, 1, -0.5), r"spans -0\.5 to 1;"),
    ],
)
def test_values_that_are_no_read_outs_are_never_written(
    base: Checkpoint, tmp_path: Path, values: Array, message: str
) -> None:
    gates = replace(make_gates(base), values={UNITS: values})
    with pytest.raises(GatesError, match=message):
        gates.write(tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_values_that_are_no_read_outs_are_not_read(base: Checkpoint, tmp_path: Path) -> None:
    make_gates(base).write(tmp_path / "g")
    file = tmp_path / "g" / GATES_FILE
    one, logit = np.float32(1).tobytes(), np.float32(7).tobytes()
    file.write_bytes(file.read_bytes().replace(one, logit))
    with pytest.raises(GatesError, match="spans 7 to 7"):
        Gates.read(file)


def test_a_folder_that_is_not_empty_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        make_gates(base).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["note"]


def test_gates_of_another_base_are_refused(base: Checkpoint) -> None:
    gates = replace(make_gates(base), base_fingerprint="0" * 64)
    with pytest.raises(GatesError, match=r"trained on base 000000000000…, but .*base is [0-9a-f]"):
        gates.check(base)


def test_gates_of_a_base_that_was_edited_are_refused(base: Checkpoint, tmp_path: Path) -> None:
    written = stored(tmp_path / "g", replace(make_gates(base), base_digest=base.digest))
    assert written.base_digest == base.digest
    written.check(base)
    older = stored(tmp_path / "old", make_gates(base))
    assert older.base_digest is None
    # The fingerprint does not cover the config, nor what is far from the edges of a tensor.
    (base.folder / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 0.5}))
    edited = Checkpoint.open(base.folder)
    older.check(edited)
    written.check(edited, whole_base=False)
    with pytest.raises(
        GatesError, match=r"config.json or weights of .*base were edited after these"
    ):
        written.check(edited)


def test_gates_of_another_family_are_refused(base: Checkpoint) -> None:
    gates = replace(make_gates(base), family="bert")
    with pytest.raises(GatesError, match=r"gates of family 'bert', but .* family 'llama'"):
        gates.check(base)


@pytest.mark.parametrize(
    ("key", "size", "message"),
    [
        ("model.layers.2.mlp_units", 6, "expected a key like model.layers.0.mlp_units, .*heads,"),
        ("model.norm.rows", 16, "model.norm.rows names no gate"),
        (UNITS, 5, "mlp_units has 5 gates, the model has 6 there"),
    ],
)
def test_keys_that_do_not_fit_the_model_are_refused(
    base: Checkpoint, key: str, size: int, message: str
) -> None:
    gates = replace(make_gates(base), values={key: np.ones(size, np.float32)})
    with pytest.raises(GatesError, match=message):
        gates.check(base)


@pytest.mark.parametrize(
    ("name", "delta", "message"),
    [
        ("model.norm.bias", np.ones(16, np.float32), "norm.bias is neither a tensor of the base"),
        ("model.norm.weight", np.ones(15, np.float32), r"is F32 of shape \[15\], the base wants"),
        ("model.norm.weight", np.ones(16, np.int64), r"is I64 of shape \[16\]"),
    ],
)
def test_deltas_that_do_not_fit_the_model_are_refused(
    base: Checkpoint, tmp_path: Path, name: str, delta: Array, message: str
) -> None:
    gates = stored(tmp_path / "g", make_gates(base), {name: delta})
    with pytest.raises(GatesError, match=message):
        gates.check(base)


def test_no_deltas_file_is_written_without_deltas(base: Checkpoint, tmp_path: Path) -> None:
    make_gates(base).write(tmp_path / "g")
    assert not (tmp_path / "g" / DELTAS_FILE).exists()


def test_an_order_reads_back_and_closes_step_by_step(base: Checkpoint, tmp_path: Path) -> None:
    groups = "model.layers.1.kv_groups"
    values = {UNITS: floats(0, 1, 0.5, 1, 0, 1), groups: floats(1, 1)}
    order = {UNITS: np.array([0, 2, 1, -1, 0, 3], np.int32), groups: np.array([-1, 2], np.int32)}
    found = stored(tmp_path / "g", replace(make_gates(base), values=values, order=order))
    assert found.order.keys() == order.keys() and num_steps(found.order) == 3
    assert all(np.array_equal(found.order[key], order[key]) for key in order)
    for step, units, open_groups in (
        (0, [0, 1, 0.5, 1, 0, 1], [1, 1]),
        (1, [0, 1, 0, 1, 0, 1], [1, 1]),
        (2, [0, 0, 0, 1, 0, 1], [1, 0]),
        (3, [0, 0, 0, 1, 0, 0], [1, 0]),
    ):
        closed = found.closed_to(step)
        assert closed.values[UNITS].tolist() == units
        assert closed.values[groups].tolist() == open_groups
        assert closed.values[UNITS].dtype == np.float32 and not closed.order
    make_gates(base).write(tmp_path / "plain")
    assert not (tmp_path / "plain" / ORDER_FILE).exists()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            {UNITS: [0, 1, 2, -1, 0]},
            r"mlp_units is int32 of shape \[5\], and the gates are of shape",
        ),
        ({UNITS: [1, 2, 3, -1, 0, 4]}, "mlp_units must be 0 where a gate is closed"),
        ({UNITS: [0, 1, 2, -2, 0, 3]}, "and elsewhere a step from 1 or -1; train again"),
        ({"model.layers.1.mlp_units": [1]}, "mlp_units is a key of the gates or of the order"),
    ],
)
def test_an_order_that_is_not_of_its_gates_is_refused(
    base: Checkpoint, tmp_path: Path, order: dict[str, list[int]], message: str
) -> None:
    gates = replace(make_gates(base), values={UNITS: floats(0, 1, 1, 1, 0, 1)})
    steps = {key: np.array(each, np.int32) for key, each in order.items()}
    with pytest.raises(GatesError, match=f"{ORDER_FILE}: .*{message}"):
        stored(tmp_path / "g", replace(gates, order=steps))


def test_an_order_file_that_is_none_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    make_gates(base).write(tmp_path / "g")
    (tmp_path / "g" / ORDER_FILE).write_bytes(b"no tensors")
    with pytest.raises(GatesError, match=ORDER_FILE):
        Gates.read(tmp_path / "g")
