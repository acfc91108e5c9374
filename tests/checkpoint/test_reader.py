"""Model folders: every way in which a file can be broken, and writing all or nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.location import find_folder
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, read_header
from sgate_serve.checkpoint.writer import STAGING_DIR, TensorHeader, new_folder
from sgate_serve.errors import CheckpointError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "vocab_size": 5,
    "tie_word_embeddings": True,
}
SHAPES = ModelSpec.from_config(CONFIG, "config.json").tensor_shapes()
UP = "model.layers.1.mlp.up_proj.weight"


def arrays() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {name: generator.random(shape, np.float32) for name, shape in SHAPES.items()}


def write(
    folder: Path,
    values: dict[str, NDArray[Any]],
    shard_bytes: int = 2**30,
    config: dict[str, Any] = CONFIG,
) -> Path:
    names = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
    headers = [TensorHeader(name, names[a.dtype], a.shape) for name, a in values.items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        writer.write_weights(headers, values.values(), shard_bytes)
    return folder


@pytest.mark.parametrize(("shard_bytes", "num_files"), [(2**30, 1), (600, 8)])
def test_round_trip_in_one_file_and_in_shards(
    tmp_path: Path, shard_bytes: int, num_files: int
) -> None:
    folder = write(tmp_path / "model", arrays(), shard_bytes)
    checkpoint = Checkpoint.open(folder)
    for name, value in arrays().items():
        np.testing.assert_array_equal(checkpoint.read(name), value)
    assert checkpoint.num_bytes == sum(value.nbytes for value in arrays().values())
    assert len(list(folder.glob("*.safetensors"))) == num_files
    assert (folder / INDEX_FILE).exists() == (num_files > 1)


def test_fingerprint_depends_on_content_and_not_on_sharding(tmp_path: Path) -> None:
    changed = arrays()
    changed[UP][0, 0] += 1
    one, shards, other = (
        Checkpoint.open(write(tmp_path / name, values, size))
        for name, values, size in (
            ("one", arrays(), 2**30),
            ("shards", arrays(), 600),
            ("other", changed, 2**30),
        )
    )
    assert one.fingerprint == shards.fingerprint != other.fingerprint
    assert one.digest == shards.digest != other.digest


def test_the_digest_is_the_documented_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", arrays()))
    digest = hashlib.sha256(json.dumps(CONFIG, sort_keys=True).encode() + b"\n")
    for name, value in sorted(arrays().items()):
        content = hashlib.sha256(value.tobytes()).hexdigest()
        entry = [name, list(value.shape), "F32", content]
        digest.update(json.dumps(entry).encode() + b"\n")
    assert checkpoint.digest == digest.hexdigest()


def test_the_digest_sees_a_byte_that_the_fingerprint_does_not(tmp_path: Path) -> None:
    table = np.zeros((4096, 8), np.float32)
    found = []
    for row in (1000, 2000):
        table[row] += 1
        values = arrays() | {"model.embed_tokens.weight": table}
        folder = write(tmp_path / f"{row}", values, config=CONFIG | {"vocab_size": 4096})
        found.append(Checkpoint.open(folder))
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].digest != found[1].digest


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"rms_norm_eps": 1e-3}, False),
        ({"rope_theta": 5.0}, False),
        ({"pad_token_id": 3}, False),
        ({"unheard_of": True}, False),
        ({"eos_token_id": 3, "_name_or_path": "x", "torch_dtype": "float32"}, True),
        ({"transformers_version": "5", "use_cache": False, "label2id": {"a": 0}}, True),
    ],
)
def test_the_digest_covers_what_the_config_says_of_the_function(
    tmp_path: Path, change: dict[str, Any], is_same: bool
) -> None:
    folder = write(tmp_path / "model", arrays())
    before = Checkpoint.open(folder).digest
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    assert (Checkpoint.open(folder).digest == before) is is_same


def test_a_truncated_file_is_refused_with_the_tensor_and_the_remedy(tmp_path: Path) -> None:
    file = write(tmp_path / "model", arrays()) / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"truncated: tensor .* download or copy it again"):
        Checkpoint.open(file.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors header"),
        (b"\xff" * 16, "no safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "malformed safetensors header"),
        ((4).to_bytes(8, "little") + b"nope", "malformed safetensors header"),
        ((7).to_bytes(8, "little") + b'{"a":1}', "malformed safetensors header"),
    ],
)
def test_bytes_that_are_not_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / SINGLE_FILE
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}, "dtype F8, which is not supported"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes do not hold"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}, "size or offset is negative"),
    ],
)
def test_headers_that_contradict_themselves(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    text = json.dumps({"weight": entry}).encode()
    file = tmp_path / SINGLE_FILE
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


def test_missing_surplus_misshapen_and_quantized_tensors(tmp_path: Path) -> None:
    values: dict[str, NDArray[Any]] = dict(arrays())
    up = values.pop(UP)
    with pytest.raises(CheckpointError, match=f"tensor {UP} is missing"):
        Checkpoint.open(write(tmp_path / "missing", values))
    with pytest.raises(CheckpointError, match=r"has shape \[8, 6\]; expected 6 rows, to fit"):
        Checkpoint.open(write(tmp_path / "misshapen", values | {UP: up.T.copy()}))
    with pytest.raises(CheckpointError, match=r"has shape \[6\], config.json implies \[8\]"):
        short = {"model.norm.weight": np.ones(6, np.float32)}
        Checkpoint.open(write(tmp_path / "short", values | {UP: up} | short))
    with pytest.raises(CheckpointError, match="stored as I64; give the unquantized checkpoint"):
        Checkpoint.open(write(tmp_path / "integers", values | {UP: up.astype(np.int64)}))
    with pytest.raises(CheckpointError, match=r"model.extra is not part of family llama"):
        Checkpoint.open(write(tmp_path / "surplus", values | {UP: up, "model.extra": up}))


def test_rotary_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    assert Checkpoint.open(write(tmp_path / "model", arrays() | buffer)).spec.hidden_size == 8


def test_paths_that_are_not_model_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        find_folder(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match=r"is a file; give the model folder"):
        find_folder(file)
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor"):
        Checkpoint.open(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="weight_map is missing or empty"):
        Checkpoint.open(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "lost.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lost.safetensors is missing, though the weights"):
        Checkpoint.open(tmp_path)


def test_names_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing: no such folder here, and the hub"):
        find_folder("nobody/nothing")


def test_non_empty_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="is not empty; give a new folder"):
        write(tmp_path, dict(arrays()))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Any:
        yield next(iter(arrays().values()))
        raise OSError("disk full")

    headers = [TensorHeader(name, "F32", shape) for name, shape in SHAPES.items()]
    with pytest.raises(OSError, match="disk full"), new_folder(tmp_path / "new") as writer:
        writer.write_weights(headers, failing(), 2**30)
    assert list(tmp_path.iterdir()) == []


def test_staged_files_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    staged = tmp_path / "model" / STAGING_DIR / "half.safetensors"
    staged.parent.mkdir(parents=True)
    staged.write_text("half")
    folder = write(tmp_path / "model", dict(arrays()))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE_FILE]


def test_weights_appear_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def recording(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recording)
    folder = write(tmp_path / "model", dict(arrays()), shard_bytes=600)
    assert moved[-1] == INDEX_FILE
    assert not (folder / STAGING_DIR).exists()
