"""Write the graph of a model to disk, the weights first and the graph last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from converters.to_onnx.activations import check_activation
from converters.to_onnx.calibration import calibration_blocks
from converters.to_onnx.decoder import build_decoder
from converters.to_onnx.encoder import build_encoder
from converters.to_onnx.key_value_cache import NO_SCALES, CacheScales, measured_scales
from converters.to_onnx.matrices import Moments, matrices_of_4_bits
from converters.to_onnx.rescaling import (
    NO_EXPONENTS,
    Exponents,
    measured_exponents,
    norm_readers,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.digests import file_digest
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import EngineError, SgateError
from sgate_serve.onnx_format.names import (
    GRAPH_FILE,
    META_IN_ROWS,
    META_RESCALED,
    META_WEIGHTS_DIGEST,
    WEIGHTS_FILE,
)
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision

_UNFINISHED = ".model.onnx.incomplete"
# Shapes and indices stay in the graph, where ONNX Runtime must see them.
SMALL_BYTES = 256


def write_onnx(
    checkpoint: Checkpoint, folder: Path, precision: Precision = PRECISIONS[FP32]
) -> None:
    """Write `model.onnx` and `model.onnx.data` of a stock or `sgate` checkpoint into `folder`.

    Weights are streamed: peak memory is about twice the largest matrix in fp32, but 4 bits also
    need the model in fp32 (`input_moments`), integers of decoders the model in int8
    (`rescaling_exponents`), and an int8 KV cache the model without one (`cache_scales`).
    `model.onnx` is written last, so its presence means that both are complete, and records the
    digest of the weights. Raises EngineError if it exists already, or for a model that the graph or
    its precision cannot express.
    """
    target = folder / GRAPH_FILE
    if target.exists():
        raise EngineError(f"{target} exists already; remove it or give a new folder")
    model = build_graph(checkpoint, precision)  # raises before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with input_moments(checkpoint, folder, model) as moments:
        exponents = rescaling_exponents(checkpoint, precision, folder)
        scales = cache_scales(checkpoint, folder, precision) if precision.int8_cache else NO_SCALES
        if moments is not None or exponents or scales:
            model = build_graph(checkpoint, precision, moments, exponents, scales)
        save_graph(model, folder)


def rescaling_exponents(checkpoint: Checkpoint, precision: Precision, folder: Path) -> Exponents:
    """Return the exponents for a graph of the checkpoint in a precision.

    One in int8, in blocks, reads tokens for it, from a temporary folder inside `folder`.
    """
    readers = norm_readers(checkpoint, precision)
    if not readers:
        return NO_EXPONENTS
    model = build_graph(checkpoint, PRECISIONS[INT8])
    with TemporaryDirectory(prefix=".rescaling-", dir=folder) as written:
        save_graph(model, Path(written))
        return measured_exponents(checkpoint, readers, Path(written), model)


def cache_scales(checkpoint: Checkpoint, folder: Path, precision: Precision) -> CacheScales:
    """Return the scales of an int8 KV cache for a graph of the checkpoint in a precision.

    One without such a cache reads tokens for it, from a temporary folder inside `folder`; one in
    int8 instead of one in 4 bits that is not rounded for what it multiplies.
    """
    model = build_graph(checkpoint, replace(precision, in_rows=False))
    if matrices_of_4_bits(model):
        model = build_graph(checkpoint, PRECISIONS[INT8])
    with TemporaryDirectory(prefix=".cache-scales-", dir=folder) as written:
        save_graph(model, Path(written))
        return measured_scales(checkpoint, Path(written))


@contextmanager
def input_moments(
    checkpoint: Checkpoint, folder: Path, model: ir.Model
) -> Iterator[Moments | None]:
    """Give the moments of the inputs of each matrix that `model` has in 4 bits; None without any.

    The fp32 graph reads the text for it, from a temporary folder inside `folder`.
    """
    matrices = matrices_of_4_bits(model)
    blocks = calibration_blocks(checkpoint) if matrices else None
    if blocks is None:
        yield None
        return
    from converters.to_onnx.input_statistics import InputMoments

    with TemporaryDirectory(prefix=".moments-", dir=folder) as exact:
        write_onnx(checkpoint, Path(exact))
        yield InputMoments(Path(exact), blocks, matrices).of


def save_graph(model: ir.Model, folder: Path) -> None:
    """Write a graph into a folder, the weights first."""
    target = folder / GRAPH_FILE
    unfinished, weights = folder / _UNFINISHED, folder / WEIGHTS_FILE
    try:
        stored = ir.external_data.unload_from_model(
            model, folder, WEIGHTS_FILE, size_threshold_bytes=SMALL_BYTES
        )
        stored.metadata_props[META_WEIGHTS_DIGEST] = file_digest(weights)
        ir.save(stored, unfinished, format="protobuf")
        unfinished.replace(target)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        own = _own_error(error)
        if own is not None:
            raise own from error
        raise


def build_graph(
    checkpoint: Checkpoint,
    precision: Precision = PRECISIONS[FP32],
    moments: Moments | None = None,
    exponents: Exponents = NO_EXPONENTS,
    scales: CacheScales = NO_SCALES,
) -> ir.Model:
    """Return the graph of a checkpoint; weights are read and rounded when it is saved.

    With `moments`, weights of 4 bits are rounded for what they multiply. Norms with `exponents` and
    what reads them are rescaled. With `scales`, the KV cache is in int8.
    Raises EngineError for layers, an activation, rope type or precision that no graph can express.
    """
    check_layers(checkpoint.spec, checkpoint.folder)
    check_activation(checkpoint.spec.activation)
    if checkpoint.spec.is_encoder:
        return build_encoder(checkpoint, precision)
    model = build_decoder(checkpoint, precision, moments, exponents, scales)
    if precision.in_rows:
        model.metadata_props[META_IN_ROWS] = "1"
    if exponents:
        model.metadata_props[META_RESCALED] = "1"
    return model


def check_layers(spec: ModelSpec, folder: Path) -> None:
    """Raise EngineError for layers of kinds that graphs do not have."""
    if (what := spec.for_torch_alone) is not None:
        raise EngineError(
            f"{folder} has {what}, and ONNX graphs have none yet; convert without onnx "
            "in --to, and give other commands --engine torch"
        )


def _own_error(error: BaseException | None) -> SgateError | None:
    """Return the SgateError of reading a weight; onnx_ir wraps it if the weight is small."""
    while error is not None and not isinstance(error, SgateError):
        error = error.__cause__
    return error
