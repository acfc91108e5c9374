"""Which model a folder holds, in one string: what gates, plans and graphs are bound to.

The fingerprint reads little and can miss a change; the digest covers every byte. Both are the same
for one file and for shards. docs/format.md defines them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgate_serve.checkpoint.digests import span_digests
from sgate_serve.checkpoint.tensor_files import TensorInfo

FINGERPRINT_EDGE = 4096
# Keys of a config that neither a forward pass nor the shape of a model depends on: where the config
# came from, how a model is loaded, and what follows the outputs.
WITHOUT_EFFECT = frozenset(
    {
        *("_name_or_path", "transformers_version", "auto_map"),
        *("dtype", "torch_dtype", "use_cache", "_attn_implementation"),
        *("bos_token_id", "eos_token_id", "id2label", "label2id", "problem_type"),
    }
)


def fingerprint_of(tensors: Mapping[str, TensorInfo]) -> str:
    """Return a sha256 over sorted (name, shape, dtype, first and last 4 KiB of each tensor)."""
    digest = hashlib.sha256()
    for info in _in_files(tensors):
        digest.update(json.dumps([info.name, list(info.shape), info.dtype]).encode())
        with info.file.open("rb") as file:
            file.seek(info.start)
            digest.update(file.read(min(FINGERPRINT_EDGE, info.end - info.start)))
            file.seek(max(info.start, info.end - FINGERPRINT_EDGE))
            digest.update(file.read(info.end - file.tell()))
    return digest.hexdigest()


def digest_of(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """Return a sha256 over the config and (name, shape, dtype, sha256 of all bytes) of each tensor.

    Raises CheckpointError if a file changes while it is read.
    """
    kept = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode() + b"\n")
    infos = _in_files(tensors)
    spans: dict[Path, dict[str, tuple[int, int]]] = {}
    for info in infos:
        spans.setdefault(info.file, {})[info.name] = (info.start, info.end)
    found = span_digests(spans)
    for info in infos:
        entry = [info.name, list(info.shape), info.dtype, found[info.file][info.name]]
        digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()


def _in_files(tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Return the tensors that the files have, each once, by name."""
    found = {stored.name: stored for info in tensors.values() for stored in info.in_files}
    return [found[name] for name in sorted(found)]
