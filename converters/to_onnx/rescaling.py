"""Powers of two between the channels of a norm and the columns of the linear that reads it.

An int8 product in rows rounds a token with one scale, which a few large channels would make coarse
for all others; one in blocks has a scale for each block, and the others of theirs suffer. So each
channel of a norm's output is divided by a power of two, and the column that multiplies it is
multiplied by the same: in floats no bit of the product changes. Exponents even out what the
channels reach and what the columns hold (SmoothQuant, arXiv 2211.10438).

What a channel reaches hardly depends on the text: exponents of random tokens serve as well as those
of prose, so that a graph needs neither a tokenizer nor data.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.to_onnx.integer_blocks import Floats
from converters.to_onnx.linears import (
    Linear,
    first_linear,
    head,
    recurrent_shares,
    takes_all_inputs,
)
from converters.to_onnx.rope import max_positions
from sgate_serve.architecture.family import ATTENTION, CAUSAL_LM, MLP
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.onnx_format.precision import Precision

# Norm → the exponents [hidden] by which its channels are divided.
Exponents = Mapping[str, NDArray[np.int32]]
NO_EXPONENTS: Exponents = MappingProxyType({})

NUM_BLOCKS, SEQ_LEN = 8, 256
# How much of the difference between channels goes into the weights: more than half, as these have a
# scale for each row. The head is in blocks, and can be the table of embeddings as well.
ALPHA, HEAD_ALPHA = 0.7, 0.5
LARGEST_EXPONENT = 15
# In SmolLM2's head no row is larger, inside its blocks a few are.
LARGEST_ROW = 4
# A smaller weight of a norm, or one that is no number, keeps the exponent 0.
LEAST_WEIGHT = 1e-30


def norm_readers(checkpoint: Checkpoint, precision: Precision) -> dict[str, Linear]:
    """Return norm → the linear of 8 bits that alone reads it, to be rescaled in a precision.

    That is the head in every one with integers, and in rows what reads the norm before a block.
    """
    spec = checkpoint.spec
    if spec.is_encoder or precision.block is None:
        return {}
    readers = _readers_inside(checkpoint) if precision.in_rows else {}
    if spec.task == CAUSAL_LM:
        readers[f"{spec.family.final_norm}"] = head(checkpoint)
    return readers


def zero_exponents(checkpoint: Checkpoint, precision: Precision) -> Exponents:
    """Return exponents of 0 for all that is rescaled in a precision.

    A graph with them has the operators of one with measured exponents, and so its speed.
    """
    zeros = np.zeros(checkpoint.spec.hidden_size, np.int32)
    return dict.fromkeys(norm_readers(checkpoint, precision), zeros)


def _readers_inside(checkpoint: Checkpoint) -> dict[str, Linear]:
    """Return norm → the linear that reads it alone, all channels of it, in one product.

    Routers and experts share what they read, and a matrix without all columns has other channels.
    In a recurrent layer a few rows in floats read the norm besides.
    """
    spec, family = checkpoint.spec, checkpoint.spec.family
    linears = {
        family.norm_name(index, block): first_linear(checkpoint, index, block)
        for index, shape in enumerate(spec.layers)
        for block, is_there in (
            (ATTENTION, shape.num_heads),
            (MLP, shape.mlp_units and not shape.experts),
        )
        if is_there and block in family.norms and _takes_all_inputs(checkpoint, index, block)
    }
    return {norm: linear for norm, linear in linears.items() if len(linear.matrices) == 1}


def _takes_all_inputs(checkpoint: Checkpoint, index: int, block: str) -> bool:
    readers = [first_linear(checkpoint, index, block)]
    if block == ATTENTION and checkpoint.spec.layers[index].is_recurrent:
        readers.append(recurrent_shares(checkpoint, index))
    return all(map(takes_all_inputs, readers))


def measured_exponents(
    checkpoint: Checkpoint, readers: Mapping[str, Linear], folder: Path, model: ir.Model
) -> Exponents:
    """Return the exponents that suit `model`, a graph without any, stored in `folder`."""
    from converters.to_onnx.input_statistics import largest_values

    outputs = {norm: _output_of(model, norm) for norm in readers}
    reached = largest_values(folder, list(outputs.values()), random_tokens(checkpoint))
    exponents = {}
    for norm, linear in readers.items():
        (matrix,) = linear.matrices
        column = largest_of_columns(matrix.weight())
        alpha = HEAD_ALPHA if matrix.is_outer else ALPHA
        found = suitable_exponents(reached[outputs[norm]], column, alpha)
        exponents[norm] = np.where(_can_be_divided(_weight(model, norm)), found, 0)
    return exponents


def largest_of_columns(weight: Array) -> Floats:
    """Return the largest magnitude of each column of a matrix [out, in].

    A row far larger than most has a scale of its own, and must not decide for the others: its
    largest weight counts as at most LARGEST_ROW times the median of the rows.
    """
    magnitudes: Floats = np.abs(weight)
    rows = magnitudes.max(axis=1, keepdims=True)
    if rows.any():
        most = LARGEST_ROW * np.median(rows[rows > 0])
        magnitudes *= np.minimum(rows, most) / np.where(rows > 0, rows, 1)
    found: Floats = magnitudes.max(axis=0)
    return found


def suitable_exponents(reached: Floats, column: Floats, alpha: float) -> NDArray[np.int32]:
    """Return exponents e [in] of which 2^e is about reached^alpha / column^(1 - alpha).

    Those of most channels are near 0, and that of a channel is 0 where either is, or is infinite.
    """
    is_live = (reached > 0) & (column > 0) & np.isfinite(reached)
    if not is_live.any():
        return np.zeros(len(reached), np.int32)
    wanted = alpha * np.log2(reached[is_live]) - (1 - alpha) * np.log2(column[is_live])
    exponents = np.zeros(len(reached))
    exponents[is_live] = wanted - np.median(wanted)
    return _whole(exponents)


def stored_exponents(readers: Mapping[str, Linear], stored: ir.Model, built: ir.Model) -> Exponents:
    """Return the exponents of a stored graph, given the one that is built without any.

    They are the quotients of its norms' weights.
    """
    exponents = {}
    for norm in readers:
        whole, divided = (_weight(model, norm) for model in (built, stored))
        if divided.shape == whole.shape:
            is_live = _can_be_divided(whole) & np.isfinite(divided) & (divided != 0)
            quotients = np.divide(whole, divided, out=np.ones_like(whole), where=is_live)
            exponents[norm] = _whole(np.log2(np.abs(quotients)))
    return exponents


def _whole(exponents: Array) -> NDArray[np.int32]:
    return np.rint(exponents).clip(-LARGEST_EXPONENT, LARGEST_EXPONENT).astype(np.int32)


def random_tokens(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Return tokens [n, s], always the same."""
    shape = (NUM_BLOCKS, min(SEQ_LEN, max_positions(checkpoint.spec)))
    return np.random.default_rng(0).integers(0, checkpoint.spec.vocab_size, shape)


def _can_be_divided(weight: Array) -> NDArray[np.bool_]:
    """Return which weights of a norm [hidden] may have an exponent: it can be read from these."""
    can: NDArray[np.bool_] = np.isfinite(weight) & (np.abs(weight) >= LEAST_WEIGHT)
    return can


def _output_of(model: ir.Model, norm: str) -> str:
    """Return the name of the value that a norm computes."""
    ((node, _),) = model.graph.initializers[f"{norm}.weight"].uses()
    return f"{node.outputs[0].name}"


def _weight(model: ir.Model, norm: str) -> Array:
    tensor = model.graph.initializers[f"{norm}.weight"].const_value
    assert tensor is not None, norm
    return tensor.numpy()
