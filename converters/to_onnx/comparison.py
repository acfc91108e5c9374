"""Compare a stored graph with the one that its model folder gives: every weight, node and setting.

Weights of 4 bits need only be near the folder's: they are rounded for what they multiply, which
CPUs compute with other last bits, so that some are rounded the other way.
Both are streamed: peak memory is about twice the largest matrix in fp32; but integers of decoders
need the model in int8, on disk and in memory, to measure what is rescaled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from converters.to_onnx.integer_blocks import Blocks, dequantized_4_bits, spans
from converters.to_onnx.matrices import PARTS, matrices_of_4_bits
from converters.to_onnx.rescaling import Exponents, norm_readers, stored_exponents
from converters.to_onnx.rope import TABLE_PREFIX
from converters.to_onnx.writer import build_graph, rescaling_exponents
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.environment import cache_dir
from sgate_serve.errors import SgateError
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.precision import Precision

# Where a graph came from, which whoever loads it compares with the folder.
PROVENANCE = {names.META_FINGERPRINT, names.META_DIGEST, names.META_WEIGHTS_DIGEST}
BLOCK_BYTES = 2**24
# Of a position's angle in fp32, whose power and cosine differ by a few units in the last place
# among the vector instructions of CPUs.
ANGLE_ERROR = 2.0**-21
NEAR_STEPS = 1.5


def first_difference(checkpoint: Checkpoint, folder: Path, precision: Precision) -> str | None:
    """Return the first part of the graph in `folder` that a graph built anew does not have.

    None means that building it from the checkpoint gives the same graph. Rotary tables may differ
    by the rounding of fp32, since CPUs compute cosines differently, and weights of 4 bits by about
    a step. Powers of two between norms and their readers may be the next to those that are
    measured here, as they follow from activations. Anything else must be equal.
    """
    try:
        stored = ir.load(folder / names.GRAPH_FILE)
        held = replace(precision, in_rows=names.META_IN_ROWS in stored.metadata_props)
        built = build_graph(checkpoint, held)
        # Older graphs in blocks have no rescaled norm; one in rows without is too coarse.
        if held.in_rows or names.META_RESCALED in stored.metadata_props:
            exponents = stored_exponents(norm_readers(checkpoint, held), stored, built)
            if (norm := _unsuitable(checkpoint, held, exponents)) is not None:
                return f"weight {norm}.weight is not that of the folder's tensors"
            built = build_graph(checkpoint, held, exponents=exponents)
        return next(_differences(stored, built), None)
    except SgateError:
        raise
    except Exception as error:  # a damaged file: onnx_ir and protobuf raise nothing narrower
        return f"it cannot be read ({error})"


def _unsuitable(checkpoint: Checkpoint, precision: Precision, exponents: Exponents) -> str | None:
    """Return the first norm whose exponents are not about those that would be chosen now."""
    with _scratch_folder() as scratch:
        measured = rescaling_exponents(checkpoint, precision, Path(scratch))
    return next((n for n, own in exponents.items() if np.abs(own - measured[n]).max() > 1), None)


def _scratch_folder() -> "TemporaryDirectory[str]":
    """Create a folder in the cache, which has room for models, or else where the system has it."""
    prefix = ".compared-"
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=prefix, dir=cache_dir())
    except OSError:
        return TemporaryDirectory(prefix=prefix)


def _differences(stored: ir.Model, built: ir.Model) -> Iterator[str]:
    yield from _different_metadata(stored, built)
    yield from _different_weights(stored, built)
    # Serialized without weights, which are in the other file.
    stored.graph.initializers.clear()
    built.graph.initializers.clear()
    found, expected = ir.to_proto(stored), ir.to_proto(built)
    for message in (found, expected):
        del message.metadata_props[:]
    nodes = list(zip(found.graph.node, expected.graph.node, strict=False))
    different = next((one.name for one, other in nodes if one != other), None)
    if different is not None:
        yield f"node {different} is another"
    if len(found.graph.node) != len(expected.graph.node):
        yield f"it has {len(found.graph.node)} nodes, not {len(expected.graph.node)}"
    if found != expected:
        yield "its inputs, outputs or operator sets are others"


def _different_metadata(stored: ir.Model, built: ir.Model) -> Iterator[str]:
    for key in sorted(built.metadata_props.keys() - PROVENANCE):
        value = stored.metadata_props.get(key)
        if value != built.metadata_props[key]:
            yield f"metadata {key} is {value!r}, not {built.metadata_props[key]!r}"


def _different_weights(stored: ir.Model, built: ir.Model) -> Iterator[str]:
    found, expected = stored.graph.initializers, built.graph.initializers
    for name in sorted(found.keys() ^ expected.keys()):
        yield f"weight {name} is {'missing' if name in expected else 'not one of this model'}"
    nibbles = matrices_of_4_bits(built)
    near = {f"{name}.{part}" for name in nibbles for part in PARTS}
    for name, value in expected.items():
        one, other = found[name].const_value, value.const_value
        assert one is not None and other is not None, name
        if isinstance(one, ir.ExternalTensor) and one.location != names.WEIGHTS_FILE:
            yield f"weight {name} is in {one.location}, not in {names.WEIGHTS_FILE}"
        equal = _equal_tables if name.startswith(TABLE_PREFIX) else _equal
        if one.dtype != other.dtype or list(one.shape) != list(other.shape):
            yield f"weight {name} has another type or shape"
        elif name not in near and not equal(one.numpy(), other.numpy()):
            yield f"weight {name} is not that of the folder's tensors"
    for name in nibbles:
        if not _is_near(*(_blocks(weights, name) for weights in (found, expected))):
            yield f"weight {name} is not that of the folder's tensors"


def _blocks(weights: Mapping[str, ir.Value], name: str) -> Blocks:
    tensors = (weights[f"{name}.{part}"].const_value for part in PARTS)
    return Blocks(*(tensor.numpy() for tensor in tensors if tensor is not None))


def _is_near(found: Blocks, expected: Blocks) -> bool:
    """Compare rows: roots of mean squares of the differences, and the same of the scales."""
    width = found.values.shape[1] * found.values.shape[2] * 2
    for span in spans(np.broadcast_to(np.uint8(0), (len(found.values), width))):
        one, other = (dequantized_4_bits(blocks, span) for blocks in (found, expected))
        errors = np.sqrt(np.square(one - other).mean(axis=(1, 2)))
        # A block of zeros has the scale 1, and is zero however it is rounded.
        is_live = other.any(axis=2)
        steps = np.sqrt(np.square(expected.scales[span] * is_live).mean(axis=1))
        # Not `>`: a NaN must count as far.
        if one[~is_live].any() or not (errors <= NEAR_STEPS * steps).all():
            return False
    return True


def _equal(found: Array, expected: Array) -> bool:
    one, other = (
        np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (found, expected)
    )
    spans = (slice(start, start + BLOCK_BYTES) for start in range(0, len(one), BLOCK_BYTES))
    return all(np.array_equal(one[span], other[span]) for span in spans)


def _equal_tables(found: Array, expected: Array) -> bool:
    """Compare cosines or sines [positions, pairs], which a rotation's angle multiplies."""
    if _equal(found, expected):
        return True
    one, other = found.astype(np.float32), expected.astype(np.float32)
    rounding = np.finfo(found.dtype).eps + ANGLE_ERROR * np.arange(1, len(one) + 1)[:, None]
    scale = max(1.0, float(np.abs(other).max()))
    # Not `>`: a NaN must count as different.
    return bool((np.abs(one - other) <= rounding * scale).all())
