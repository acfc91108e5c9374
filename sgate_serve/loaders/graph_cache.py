"""The ONNX graphs of model folders: the folder's own, or one built once and cached.

The cache is in `SGATE_CACHE`, `$XDG_CACHE_HOME/sgate-serve` or `~/.cache/sgate-serve`.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import CheckpointError, writing
from sgate_serve.onnx_format.names import GRAPH_FILE, META_PRECISION, ONNX_DIR, stored_text
from sgate_serve.onnx_format.precision import FP32, Precision, precision_named

logger = logging.getLogger(__name__)


def has_onnx(model: Checkpoint) -> bool:
    return (model.folder / ONNX_DIR / GRAPH_FILE).exists()


def onnx_folder(model: Checkpoint, precision: str | None = None) -> Path:
    """Return the folder of a model's ONNX graph in `precision`, by default `graph_precision`'s.

    The graph is built in the cache unless the model folder has it. Raises CheckpointError if the
    model's own graph was built from other weights.
    """
    wanted = graph_precision(model, precision)
    if has_onnx(model):
        check_graph(model)
        if wanted == graph_precision(model):
            return model.folder / ONNX_DIR
    target = cache_dir() / ONNX_DIR / cache_key(model, wanted)
    if (target / GRAPH_FILE).exists():
        logger.info("onnx graph of %s in %s found in %s", model.folder, wanted.name, target)
        return target
    logger.info("building the onnx graph of %s in %s in %s", model.folder, wanted.name, target)
    build_onnx(model, target, wanted)
    return target


def graph_precision(model: Checkpoint, wanted: str | None = None) -> Precision:
    """Return the precision of a model on the onnx engine: `wanted`, its graph's, or as stored.

    Without a graph in the folder, int8 weights stay int8 and floats become fp32. Raises EngineError
    for an unknown name.
    """
    name = INT8 if model.is_int8 else FP32
    if wanted is not None:
        name = wanted
    elif has_onnx(model):
        graph = (model.folder / ONNX_DIR / GRAPH_FILE).read_bytes()
        # Graphs written before this key existed are fp32.
        name = stored_text(graph, META_PRECISION) or FP32
    return precision_named(name, is_encoder=model.spec.is_encoder)


def check_graph(model: Checkpoint) -> None:
    """Raise CheckpointError unless the folder's graph was built from the folder's weights.

    The graph's metadata contain the fingerprint verbatim, so no ONNX library is needed to find it.
    """
    graph = model.folder / ONNX_DIR / GRAPH_FILE
    if model.fingerprint.encode() not in graph.read_bytes():
        raise CheckpointError(
            f"{graph} was built from other weights than {model.folder} holds now; convert the "
            "model again, or remove the onnx folder"
        )


def build_onnx(model: Checkpoint, target: Path, precision: Precision) -> None:
    """Build the graph next to `target` and move it there; another process may have been faster.

    Raises OutputError if the system refuses to write it.
    """
    from converters.to_onnx import write_onnx

    with writing(target, "set SGATE_CACHE to another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
        try:
            write_onnx(model, staging, precision)
            if not (target / GRAPH_FILE).exists():
                staging.replace(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def cache_key(model: Checkpoint, precision: Precision) -> str:
    """Return a hash of everything that a graph depends on: weights, config and precision."""
    config, how = json.dumps(model.config, sort_keys=True), json.dumps(asdict(precision))
    return hashlib.sha256(f"{model.fingerprint} {config} {how}".encode()).hexdigest()


def cache_dir() -> Path:
    own, shared = os.environ.get("SGATE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "sgate-serve"
