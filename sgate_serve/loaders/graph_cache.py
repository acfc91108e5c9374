"""The ONNX graphs of model folders: the folder's own, or one built once and cached.

A graph is taken only for the very weights and config that it was built from, and only with the
weights that were written with it: digests of all bytes decide.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from sgate_serve import __version__
from sgate_serve.checkpoint.digests import file_digest
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.environment import cache_dir, cpu_flags
from sgate_serve.errors import CheckpointError
from sgate_serve.loaders.cache_folder import new_cache_folder
from sgate_serve.onnx_format.names import (
    FORMAT_VERSION,
    GRAPH_FILE,
    META_DIGEST,
    META_PRECISION,
    META_WEIGHTS_DIGEST,
    ONNX_DIR,
    WEIGHTS_FILE,
    stored_text,
)
from sgate_serve.onnx_format.precision import FP32, Precision, precision_named, suited_to
from sgate_serve.text.tokenizer_files import TOKENIZER_FILE

logger = logging.getLogger(__name__)


def has_onnx(model: Checkpoint) -> bool:
    return (model.folder / ONNX_DIR / GRAPH_FILE).exists()


def onnx_folder(
    model: Checkpoint,
    precision: str | None = None,
    *,
    int8_cache: bool = False,
    is_for_cpu: bool = True,
) -> Path:
    """Return the folder of a model's ONNX graph in `precision`, by default `graph_precision`'s.

    The graph is built in the cache unless the model folder has it, whose KV cache is in floats.
    Raises CheckpointError if the model's own graph was built from other weights or another config.
    """
    wanted = replace(graph_precision(model, precision), int8_cache=int8_cache)
    if has_onnx(model):
        check_source(model)
        if wanted == graph_precision(model):
            check_weights(model.folder / ONNX_DIR)
            return model.folder / ONNX_DIR
    wanted = suited_to(wanted, cpu_flags() if is_for_cpu else ())
    target = cache_dir() / ONNX_DIR / cache_key(model, wanted)
    if (target / GRAPH_FILE).exists():
        try:
            check_weights(target)
        except CheckpointError as error:
            logger.warning("%s; it is built again", error)
            shutil.rmtree(target)
        else:
            logger.info("onnx graph of %s in %s found in %s", model.folder, wanted.name, target)
            return target
    how = f"{wanted.name}, in rows as this CPU has VNNI," if wanted.in_rows else wanted.name
    how += " with an int8 KV cache" if int8_cache else ""
    logger.info("building the onnx graph of %s in %s in %s", model.folder, how, target)
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


def check_source(model: Checkpoint) -> None:
    """Raise CheckpointError unless the folder's graph was built from the folder's model.

    A graph without a digest, as older releases wrote it, is compared by fingerprint, with a
    warning. No ONNX library is needed to read the metadata.
    """
    path = model.folder / ONNX_DIR / GRAPH_FILE
    graph, remedy = path.read_bytes(), "convert the model again, or remove the onnx folder"
    built_from = stored_text(graph, META_DIGEST)
    # The metadata contain the fingerprint verbatim.
    if model.fingerprint.encode() not in graph:
        raise CheckpointError(
            f"{path} was built from other weights than {model.folder} holds now; {remedy}"
        )
    if built_from is None:
        logger.warning(
            "%s: written before graphs recorded a digest of their model: only the first and last "
            "4 KiB of each tensor are compared; %s to have all of it compared",
            path,
            remedy,
        )
    elif built_from != model.digest:
        raise CheckpointError(
            f"{path} was built before config.json or weights of {model.folder} were edited; "
            f"{remedy}"
        )


def check_weights(folder: Path) -> None:
    """Raise CheckpointError unless the graph's file of weights is as it was written with it."""
    written = stored_text((folder / GRAPH_FILE).read_bytes(), META_WEIGHTS_DIGEST)
    weights = folder / WEIGHTS_FILE
    if written is not None and file_digest(weights) != written:
        raise CheckpointError(
            f"{weights} was edited or damaged after it was written with {GRAPH_FILE}; convert the "
            "model again, or remove the folder of both"
        )


def build_onnx(model: Checkpoint, target: Path, precision: Precision) -> None:
    """Build the graph next to `target` and move it there; another process may have been faster.

    Raises OutputError if the system refuses to write it.
    """
    from converters.to_onnx import write_onnx

    with new_cache_folder(target, "building", GRAPH_FILE) as staging:
        write_onnx(model, staging, precision)


def cache_key(model: Checkpoint, precision: Precision) -> str:
    """Return a hash of everything that a graph depends on: model, precision and builder."""
    builder, how = f"{FORMAT_VERSION} {__version__}", json.dumps(asdict(precision))
    tokenizer = model.folder / TOKENIZER_FILE
    # Weights are rounded to 4 bits for a text.
    reader = file_digest(tokenizer) if precision.bits == 4 and tokenizer.is_file() else ""
    return hashlib.sha256(f"{model.digest} {how} {builder} {reader}".encode()).hexdigest()
