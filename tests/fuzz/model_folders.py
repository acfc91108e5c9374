"""Small, complete folders to mutate: a stock base, its gates, the converted folder, and shards."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.architecture.wholes import WHOLES
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import SINGLE_FILE
from sgate_serve.checkpoint.writer import TensorHeader, new_folder
from sgate_serve.gates import Gates
from sgate_serve.gates.keys import linear_sites
from sgate_serve.verify.certificate import CERTIFICATE_FILE, Verification
from tests.checkpoint.ragged.layouts import rewrite_config
from tests.checkpoint.ragged.puzzle_folder import stock_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 6,
    "vocab_size": 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
# Layouts of other tools, each in a folder with that name.
FOREIGN = ("stock", "per_layer_config", "block_configs", "lists")
# A model of text and images whose text part is nearly that model.
WHOLE, LLAMA_ONLY = "mistral3", ("attention_bias", "mlp_bias")
ENCODER: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "vocab_size": 5,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
}
CERTIFICATE = Verification(
    passed=True,
    difference=None,
    engine="onnx",
    engine_version="1.0",
    max_abs_diff=1e-6,
    tolerance=1e-4,
    num_tokens=8,
    tokens_equal=8,
    ties=0,
    tensors_equal=True,
    seed=0,
    prompts=((1, 2),),
    versions={"numpy": np.__version__},
)


@dataclass(frozen=True)
class Folders:
    """A root with `base`, `gates` (with a delta), the folders made of them, and foreign layouts.

    `ordered` are gates with an order, from which `sized` has a smaller size.
    """

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def gates(self) -> Path:
        return self.root / "gates"

    @property
    def ordered(self) -> Path:
        return self.root / "ordered"

    @property
    def pruned(self) -> Path:
        return self.root / "pruned"

    @property
    def shards(self) -> Path:
        return self.root / "shards"


def write_folders(root: Path) -> Folders:
    folders = Folders(root)
    write_model(folders.base)
    write_model(folders.shards, shard_bytes=600)
    write_gates(folders)
    convert(ConvertOptions(str(folders.base), folders.pruned, folders.gates))
    for layout in FOREIGN:
        write_foreign(folders, layout)
    write_lowered(folders)
    write_sized(folders)
    stock_model(folders.root / "puzzle")
    write_whole(folders.root / "whole")
    int8 = folders.root / "int8"
    convert(ConvertOptions(str(folders.base), int8, folders.gates, precision="int8"))
    certificate = json.dumps(CERTIFICATE.to_json())
    (folders.pruned / CERTIFICATE_FILE).write_text(certificate, encoding="utf-8")
    return folders


def write_model(
    folder: Path, shard_bytes: int = 2**30, config: dict[str, Any] | None = None
) -> None:
    rng, config = np.random.default_rng(0), config or CONFIG
    shapes = ModelSpec.from_config(config, "config.json").tensor_shapes()
    headers = [TensorHeader(name, "F32", shape) for name, shape in shapes.items()]
    with new_folder(folder) as writer:
        writer.write_json("config.json", config)
        arrays = (rng.standard_normal(shape).astype(np.float32) for shape in shapes.values())
        writer.write_weights(headers, arrays, shard_bytes)


def write_whole(folder: Path) -> None:
    """Write a model of text and images: its text part, and a tensor of its images."""
    text = {key: value for key, value in CONFIG.items() if key not in LLAMA_ONLY}
    text["model_type"] = WHOLES[WHOLE].family
    shapes = dict(ModelSpec.from_config(text, "config.json").tensor_shapes())
    named = {name.replace("model.", "model.language_model.", 1): s for name, s in shapes.items()}
    headers = [
        TensorHeader(name, "F32", shape)
        for name, shape in {**named, "vision_tower.patches.weight": (4, 4)}.items()
    ]
    with new_folder(folder) as writer:
        config = {"model_type": WHOLE, "text_config": text, "tie_word_embeddings": True}
        writer.write_json("config.json", config)
        arrays = (np.ones(header.shape, np.float32) for header in headers)
        writer.write_weights(headers, arrays, 2**30)


def write_lowered(folders: Folders) -> None:
    """Write an encoder, row-col gates for it, and the resulting folder with index vectors."""
    write_model(folders.root / "encoder", config=ENCODER)
    base, rng = Checkpoint.open(folders.root / "encoder"), np.random.default_rng(0)
    values = {
        site.key: (rng.random(site.num_gates) > 0.3).astype(np.float32)
        for site in linear_sites(base.spec)
    }
    gates = Gates("by hand", "bert", "row-col", base.fingerprint, values)
    gates.write(folders.root / "encoder-gates")
    options = ConvertOptions(
        str(base.folder), folders.root / "lowered", folders.root / "encoder-gates", index_price=0
    )
    convert(options)


def write_sized(folders: Folders) -> None:
    """Write gates with an order, and the folder of two sizes that they give."""
    base, key = Checkpoint.open(folders.base).fingerprint, "model.layers.0.mlp_units"
    order = {key: np.array([0, 3, 1, -1, 2, -1], np.int32)}
    values = {key: (order[key] != 0).astype(np.float32)}
    Gates("by hand", "llama", "coupled", base, values, order=order).write(folders.ordered)
    # Of 672 block weights each of the three closed units has 24.
    sized = folders.root / "sized"
    convert(ConvertOptions(str(folders.base), sized, folders.ordered, sizes=(1 - 3 * 24 / 672,)))


def write_foreign(folders: Folders, layout: str) -> None:
    """Store `pruned` in the layout of another tool."""
    folder = folders.root / layout
    folder.mkdir()
    for name in ("config.json", SINGLE_FILE):
        shutil.copyfile(folders.pruned / name, folder / name)
    rewrite_config(folder, layout)


def write_gates(folders: Folders) -> None:
    """Close a whole attention block, some units and rows, and add a bias by a delta."""
    values = {
        "model.layers.0.mlp_units": np.array([0, 1, 0.5, 1, 0, 1], np.float32),
        "model.layers.0.heads": np.zeros(4, np.float32),
        "model.layers.1.kv_groups": np.array([0, 1], np.float32),
        "model.layers.1.mlp.up_proj.rows": np.array([1, 1, 1, 1, 1, 0], np.float32),
    }
    base = Checkpoint.open(folders.base).fingerprint
    deltas = {
        "model.layers.1.mlp.down_proj.weight": np.full((8, 6), 0.5, np.float32),
        "model.layers.1.mlp.down_proj.bias": np.ones(8, np.float32),
    }
    Gates("by hand", "llama", "coupled", base, values).write(folders.gates, deltas)
