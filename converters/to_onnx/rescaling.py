"""Powers of two between the channels of a norm and the columns of the linear that reads it.

An int8 product by rows rounds a token with one scale, which a few large channels would make coarse
for all others. So each channel of a norm's output is divided by a power of two, and the column that
multiplies it is multiplied by the same: in floats no bit of the product changes. Exponents even out
what the channels reach and what the columns hold (SmoothQuant, arXiv 2211.10438, with alpha 1/2).

It is for CPUs with AMX, where rows are faster than blocks for one token and twice as fast for many.
With VNNI alone they read prompts faster, but a lone stream is a tenth slower, so there all products
stay in blocks.

What a channel reaches hardly depends on the text: exponents of random tokens serve as well as those
of prose, so that a graph needs neither a tokenizer nor data.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.to_onnx.integer_blocks import Floats
from converters.to_onnx.linears import Linear, gate_up, query_key_value
from converters.to_onnx.rope import max_positions
from sgate_serve.architecture.family import ATTENTION, MLP
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.environment import cpu_flags

logger = logging.getLogger(__name__)

# Norm → the exponents [hidden] by which its channels are divided.
Exponents = Mapping[str, NDArray[np.int32]]
NO_EXPONENTS: Exponents = MappingProxyType({})

NUM_BLOCKS, SEQ_LEN = 8, 256
LARGEST_EXPONENT = 15
# A norm's weight below it is one of a dead channel, which keeps the exponent 0.
LEAST_WEIGHT = 1e-30


def suits_this_cpu() -> bool:
    """Return whether products by rows are faster than in blocks here, whatever the batch."""
    return "amx_int8" in cpu_flags()


def norm_readers(checkpoint: Checkpoint) -> dict[str, Linear]:
    """Return norm → the linear that alone reads it, all channels of it, in one product.

    Routers and experts share what they read, a matrix without all columns has other channels, and
    the norms of encoders are the stream itself.
    """
    spec, family = checkpoint.spec, checkpoint.spec.family
    found: dict[str, Linear] = {}
    if spec.is_encoder:
        return found
    for index, shape in enumerate(spec.layers):
        linears = {
            ATTENTION: query_key_value if shape.num_heads else None,
            MLP: gate_up if shape.mlp_units and not shape.experts else None,
        }
        for block, linear_of in linears.items():
            if linear_of is not None and block in family.norms:
                linear = linear_of(checkpoint, index)
                if len(linear.matrices) == 1 and linear.matrices[0].inputs is None:
                    found[family.norm_name(index, block)] = linear
    return found


def measured_exponents(checkpoint: Checkpoint, folder: Path, model: ir.Model) -> Exponents:
    """Return the exponents that suit `model`, a graph without any, stored in `folder`."""
    from converters.to_onnx.input_statistics import largest_values

    readers, tokens = norm_readers(checkpoint), random_tokens(checkpoint)
    logger.info(
        "int8 products in rows, as this CPU has AMX: %d norms are rescaled for %d random tokens",
        len(readers),
        tokens.size,
    )
    outputs = _norm_outputs(model, readers)
    reached = largest_values(folder, list(outputs.values()), tokens)
    exponents = {}
    for norm, linear in readers.items():
        column = np.abs(linear.matrices[0].weight()).max(axis=0)
        is_dead = np.abs(_initializer(model, f"{norm}.weight")) < LEAST_WEIGHT
        exponents[norm] = np.where(is_dead, 0, suitable_exponents(reached[outputs[norm]], column))
    return exponents


def suitable_exponents(reached: Floats, column: Floats) -> NDArray[np.int32]:
    """Return exponents e [in] of which 2^e is about sqrt(reached / column); 0 for dead channels."""
    is_live = (reached > 0) & (column > 0)
    one, other = (
        np.log2(each, out=np.zeros_like(each), where=is_live) for each in (reached, column)
    )
    return _whole((one - other) / 2)


def stored_exponents(checkpoint: Checkpoint, stored: ir.Model, built: ir.Model) -> Exponents:
    """Return the exponents of a stored graph, given the one that is built without any.

    They are the quotients of its norms' weights. A norm whose reader has no rows has none, as in
    graphs of older releases.
    """
    exponents = {}
    for norm, linear in norm_readers(checkpoint).items():
        if not _is_in_rows(stored, linear):
            continue
        whole, divided = (_initializer(model, f"{norm}.weight") for model in (built, stored))
        is_live = (np.abs(whole) >= LEAST_WEIGHT) & (divided != 0) & np.isfinite(divided)
        quotients = np.divide(whole, divided, out=np.ones_like(whole), where=is_live)
        exponents[norm] = _whole(np.log2(np.abs(quotients)))
    return exponents


def _whole(exponents: Array) -> NDArray[np.int32]:
    return np.rint(exponents).clip(-LARGEST_EXPONENT, LARGEST_EXPONENT).astype(np.int32)


def _norm_outputs(model: ir.Model, norms: Mapping[str, Linear]) -> dict[str, str]:
    """Return norm → the value that it computes."""
    weights = {f"{norm}.weight": norm for norm in norms}
    return {
        weights[f"{value.name}"]: f"{node.outputs[0].name}"
        for node in model.graph
        for value in node.inputs
        if value is not None and value.name in weights
    }


def random_tokens(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Return tokens [n, s], always the same."""
    shape = (NUM_BLOCKS, min(SEQ_LEN, max_positions(checkpoint.spec)))
    return np.random.default_rng(0).integers(0, checkpoint.spec.vocab_size, shape)


def _is_in_rows(model: ir.Model, linear: Linear) -> bool:
    values = model.graph.initializers.get(f"{linear.matrices[0].name}.values")
    tensor = None if values is None else values.const_value
    return tensor is not None and tensor.dtype == ir.DataType.INT8


def _initializer(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers[name].const_value
    assert value is not None, name
    return value.numpy()
