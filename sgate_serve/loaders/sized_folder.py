"""Smaller sizes of a converted folder: each is sliced out of it once, into a folder of the cache.

The folder of a size is like any converted one, so every engine and command takes it.
"""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

from sgate_serve import __version__
from sgate_serve.architecture.family import BASE
from sgate_serve.checkpoint.companions import companion_names
from sgate_serve.checkpoint.digests import file_digest
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE
from sgate_serve.checkpoint.writer import new_folder
from sgate_serve.environment import cache_dir, cpu_flags
from sgate_serve.loaders.cache_folder import new_cache_folder
from sgate_serve.loaders.graph_cache import check_source, graph_precision, has_onnx
from sgate_serve.onnx_format.names import GRAPH_FILE, ONNX_DIR
from sgate_serve.onnx_format.precision import Precision, suited_to
from sgate_serve.plan import PLAN_FILE
from sgate_serve.plan.sizes import SIZES_FILE, Size, size_of
from sgate_serve.progress import activity

logger = logging.getLogger(__name__)

SIZES_DIR = "sizes"


def open_size(location: str | Path, keep: float | None) -> Checkpoint:
    """Open a model folder, or the size of it that keeps a fraction of the block weights.

    Raises PlanError, with the sizes that there are, if it has no such size.
    """
    model = Checkpoint.open(location)
    if keep is None:
        return model
    size, graph = size_of(model.folder, keep), _graph(model)
    target = cache_dir() / SIZES_DIR / _key(model, keep, graph)
    if not (target / CONFIG_FILE).is_file():
        with activity(f"slicing {model.folder} to {keep:g}", is_brief=True):
            _slice(model, size, graph, target)
    logger.info("%s: the size that keeps %g is in %s", model.folder, keep, target)
    return Checkpoint.open(target)


def _slice(model: Checkpoint, size: Size, graph: Precision | None, target: Path) -> None:
    from converters.sizes import write_size

    with new_cache_folder(target, "slicing", CONFIG_FILE) as staging, new_folder(staging) as writer:
        write_size(writer, model, size, None if graph is None else graph.name)
        if graph is not None:
            from converters.to_onnx import write_onnx

            folder = writer.path(f"{ONNX_DIR}/{GRAPH_FILE}").parent
            write_onnx(Checkpoint.open(writer.staging), folder, graph)


def _graph(model: Checkpoint) -> Precision | None:
    """Return the precision of the folder's graph as a new one has it here; None without one."""
    if not has_onnx(model):
        return None
    check_source(model)
    return suited_to(graph_precision(model), cpu_flags())


def _key(model: Checkpoint, keep: float, graph: Precision | None) -> str:
    """Return a hash of all that the folder of a size depends on."""
    names = sorted({CONFIG_FILE, PLAN_FILE, SIZES_FILE, *companion_names(model.folder, BASE)})
    files = [[name, file_digest(model.folder / name)] for name in names]
    how = None if graph is None else asdict(graph)
    key = [model.digest, keep, files, how, __version__]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
