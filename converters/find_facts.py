"""Read a masked checkpoint and collect the `ModelFacts` (`converters.rules.facts`) of its zeros.

With gates, only biases and the norms that training changed are read: closed rows and columns are
zero, everything else counts as nonzero. Without gates, every tensor is scanned, one at a time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from converters.float_bits import is_zero, is_zero_along
from converters.masked import MaskedCheckpoint
from converters.rules import (
    ModelFacts,
    NormZeros,
    Zeros,
    joined,
    zeros_of_masks,
    zeros_of_weight,
    zeros_on,
)
from converters.rules.facts import Flags
from sgate_serve.architecture.activations import is_zero_below_zero
from sgate_serve.architecture.family import (
    DOWN,
    GATE,
    HIDDEN,
    MLP_ROLES,
    POSITIONS,
    TYPES,
    UP,
    VOCAB,
)
from sgate_serve.checkpoint.tensor_files import Array

# What the rows of an embedding table belong to.
TABLES = (VOCAB, POSITIONS, TYPES)


def model_facts(masked: MaskedCheckpoint) -> ModelFacts:
    """Return everything that the rules may know about a masked dense model.

    With gates, embeddings and the linears on top are not read, and no matrix is rescanned: rules 7
    and 11 find nothing.
    """
    tensors = (masked.spec.family.embedding, *masked.spec.module_names())
    sums = all(masked.dtype(f"{name}.weight") in ("F32", "F64") for name in tensors)
    if masked.gates is not None:
        found = zeros_of_masks(masked.spec, masked.masks, _biases(masked))
        layers = tuple(_with_inactive(masked, *numbered) for numbered in enumerate(found))
        trained = {name for name in _norm_names(masked) if f"{name}.weight" in masked.deltas}
        return ModelFacts(
            masked.spec,
            layers,
            _norms(masked, trained),
            has_exact_sums=sums,
            closed_experts=masked.closed_experts,
        )
    inner, outer = _linears_on_top(masked)
    return ModelFacts(
        spec=masked.spec,
        layers=tuple(_scanned_layer(masked, index) for index in range(len(masked.spec.layers))),
        norms=_norms(masked, _norm_names(masked)),
        unembedded=_unembedded(masked),
        inner=inner,
        outer=outer,
        scan=partial(_scan, masked),
        has_exact_sums=sums,
    )


def _scanned_layer(masked: MaskedCheckpoint, index: int) -> dict[str, Zeros]:
    layer = {role: _scanned_role(masked, index, role) for role in masked.spec.linear_shapes(index)}
    return _with_inactive(masked, index, layer)


def _scanned_role(masked: MaskedCheckpoint, index: int, role: str) -> Zeros:
    parts = masked.spec.parts(index, role)
    if role not in MLP_ROLES or not masked.spec.layers[index].experts:
        return zeros_of_weight(masked.read_role(index, role), masked.read_bias(index, role))
    # One expert at a time: all of them together are large.
    has_bias, found = masked.spec.has_bias(index, role), []
    for part in parts:
        bias = masked.read(f"{part.module}.bias") if has_bias else None
        found.append(zeros_of_weight(masked.read(f"{part.module}.weight"), bias))
    return joined(found, role)


def _scan(masked: MaskedCheckpoint, index: int, role: str, rows: Flags, columns: Flags) -> Zeros:
    """Return the zeros of a role on its living rows and columns."""
    parts, found = masked.spec.parts(index, role), []
    if len(parts) == 1:
        return zeros_on(masked.read_role(index, role), rows, columns)
    for part in parts:
        own = (rows, columns[part.units]) if role == DOWN else (rows[part.units], columns)
        found.append(zeros_on(masked.read(f"{part.module}.weight"), *own))
    return joined(found, role)


def _with_inactive(
    masked: MaskedCheckpoint, index: int, layer: Mapping[str, Zeros]
) -> dict[str, Zeros]:
    """Flag the bias entries that the layer's activation maps to 0."""
    role = GATE if masked.spec.family.is_gated else UP
    bias = masked.read_bias(index, role) if role in layer else None
    if bias is None or not is_zero_below_zero(masked.spec.activation):
        return dict(layer)
    return {**layer, role: replace(layer[role], inactive=np.asarray(bias <= 0))}


def _biases(masked: MaskedCheckpoint) -> dict[str, Array]:
    modules = masked.spec.module_names()
    names = masked.spec.tensor_shapes()
    return {name: masked.read(f"{name}.bias") for name in modules if f"{name}.bias" in names}


def _norm_names(masked: MaskedCheckpoint) -> list[str]:
    """Return the norms of the residual stream, the final one excepted."""
    spec = masked.spec
    names = [name for index in range(len(spec.layers)) for name in spec.norms(index)]
    return names if spec.family.embedding_norm is None else [*names, spec.family.embedding_norm]


def _norms(masked: MaskedCheckpoint, names: Iterable[str]) -> Mapping[str, NormZeros]:
    return {name: _norm(masked, name) for name in names}


def _norm(masked: MaskedCheckpoint, name: str) -> NormZeros:
    # In float64, 1 + w is zero only for w = -1.
    weight = masked.read(f"{name}.weight").astype(np.float64) + masked.spec.family.norm_offset
    bias = np.ones(weight.shape, np.bool_)
    if masked.spec.has_norm_bias:
        bias = is_zero(masked.read(f"{name}.bias"))
    return NormZeros(is_zero(weight), bias)


def _unembedded(masked: MaskedCheckpoint) -> Flags:
    """Flag the residual dimensions that are zero in every embedding table."""
    outside = masked.spec.outside.items()
    tables = [name for name, axes in outside if axes[0] in TABLES and len(axes) == 2]
    flags = np.ones(masked.spec.hidden_size, np.bool_)
    for name in tables:
        assert masked.spec.outside[name][1] == HIDDEN, name
        flags &= is_zero_along(masked.read(name), axis=0)
    return flags


def _linears_on_top(masked: MaskedCheckpoint) -> tuple[Zeros | None, Zeros | None]:
    dense = masked.spec.head.dense
    if dense is None:
        return None, None
    biases = [
        masked.read(f"{name}.bias") if f"{name}.bias" in masked.spec.head.tensors else None
        for name in (dense.inner, dense.outer)
    ]
    inner, outer = (
        zeros_of_weight(masked.read(f"{name}.weight"), bias)
        for name, bias in zip((dense.inner, dense.outer), biases, strict=True)
    )
    if biases[0] is not None and is_zero_below_zero(dense.activation):
        inner = replace(inner, inactive=np.asarray(biases[0] <= 0))
    return inner, outer
