"""The files of a folder that hold its weights: one safetensors file, or the shards of an index."""

import logging
from functools import lru_cache
from pathlib import Path

from sgate_serve.checkpoint.other_layouts import describe_missing_weights
from sgate_serve.checkpoint.tensor_files import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorInfo,
    is_name,
    read_header,
)
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import read_json

logger = logging.getLogger(__name__)


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Read the safetensors headers of the folder's single file, or of the shards in its index.

    transformers takes the single file too where both are there: saving a smaller model over a
    sharded one leaves the index.
    """
    index_path, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if single.exists():
        if index_path.exists():
            _warn_stale(index_path)
        return read_header(single)
    if not index_path.exists():
        raise CheckpointError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}: "
            f"{describe_missing_weights(folder)}"
        )
    return _read_shards(index_path)


def _read_shards(index_path: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not is_name(shard):
            raise CheckpointError(
                f"{index_path}: tensor {name!r:.80} is in {shard!r:.80}; expected the name of a "
                "file next to the index"
            )
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_header(index_path.parent / shard)
        for name in sorted(found.keys() & tensors.keys()):
            raise CheckpointError(
                f"{index_path}: tensor {name} is in {tensors[name].file.name} and in {shard}; "
                "keep it in one of them"
            )
        tensors |= found
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"{index_path}: {shard} lacks tensor {name!r:.80}, which the index puts there; "
                "download or copy both again"
            )
    return tensors


@lru_cache
def _warn_stale(index_path: Path) -> None:
    logger.warning(
        "%s is ignored, as transformers does: %s is there too; remove the one that is not meant",
        index_path,
        SINGLE_FILE,
    )
