"""Synthetic masks: row-col and coupled ones of any size, and one that causes only index work."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.convert import ConvertOptions, convert
from sgate_serve.architecture.family import ATTENTION, MLP, OUTPUT, QUERY, READERS, WRITERS
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.gates import Gates
from sgate_serve.plan.figures import Figures

Values = dict[str, NDArray[np.float32]]


def write_pruned(
    base: Checkpoint, name: str, values: Values, granularity: str = "coupled", **options: Any
) -> dict[str, Any]:
    """Convert `base` with a mask into its sibling folder `name`; return the plan's figures.

    `options` are fields of ConvertOptions.
    """
    root = base.folder.parent
    gates = root / f"{name}-gates"
    mask = Gates("synthetic", base.spec.family.name, granularity, base.fingerprint, values)
    replace(mask, base_digest=base.digest).write(gates)
    plan = convert(ConvertOptions(str(base.folder), root / name, gates, **options))
    return asdict(Figures.of(plan, base.spec))


def row_col_values(spec: ModelSpec, closed: float, seed: int) -> Values:
    """Close a share of the rows and of the columns of every linear, independently."""
    generator = np.random.default_rng(seed)
    values: Values = {}
    for module, index in spec.module_names().items():
        rows, columns = spec.module_shape(index, module)
        values[f"{module}.rows"] = _closed(generator, rows, round(closed * rows))
        values[f"{module}.columns"] = _closed(generator, columns, round(closed * columns))
    return values


def coupled_values(spec: ModelSpec, removed: float, seed: int) -> Values:
    """Close MLP units and, evenly over the KV heads, query heads; together they are `removed`."""
    generator = np.random.default_rng(seed)
    values: Values = {}
    for index, layer in enumerate(spec.layers):
        name, group = spec.family.layer_name(index), layer.queries_per_kv
        fewer = min(round(removed * group), group - 1)
        heads = [_closed(generator, group, fewer) for _ in range(layer.num_kv_heads)]
        values[f"{name}.heads"] = np.concatenate(heads)
        total = sum(rows * columns for rows, columns in spec.linear_shapes(index).values())
        by_heads = 2 * fewer * layer.num_kv_heads * layer.head_dim * spec.hidden_size
        units = round((removed * total - by_heads) / (3 * spec.hidden_size))
        values[f"{name}.mlp_units"] = _closed(generator, layer.mlp_units, units)
    return values


def uneven_values(spec: ModelSpec, removed: float, seed: int) -> Values:
    """Close heads and MLP units of an encoder, unevenly over the layers.

    A layer loses between about 0.5 and 1.5 times `removed`; all layers together lose `removed`.
    Only whole heads are closed, so the MLP units of a layer compensate for the rounding.
    """
    generator = np.random.default_rng(seed)
    shares = generator.uniform(0.5, 1.5, len(spec.layers))
    values: Values = {}
    for index, share in enumerate(shares / shares.mean() * removed):
        layer, name = spec.layers[index], spec.family.layer_name(index)
        heads = round(share * layer.num_heads)
        by_heads = 4 * heads * layer.head_dim * spec.hidden_size
        units = round((share * spec.layer_weights(index) - by_heads) / (2 * spec.hidden_size))
        values[f"{name}.heads"] = _closed(generator, layer.num_heads, heads)
        values[f"{name}.mlp_units"] = _closed(generator, layer.mlp_units, units)
    return values


def probe_values(spec: ModelSpec, seed: int) -> Values:
    """Close one row or column wherever that causes an index operation, removing almost nothing.

    Each block gathers its input once and scatters its output; queries are scattered and heads are
    gathered. That makes six operations per layer.
    """
    generator = np.random.default_rng(seed)
    values: Values = {}
    for index, layer in enumerate(spec.layers):
        for block in (ATTENTION, MLP):
            gates = _closed(generator, spec.hidden_size, 1)
            readers = [role for role in READERS[block] if role in spec.linear_shapes(index)]
            values |= {f"{spec.family.linear(index, r)}.columns": gates for r in readers}
            writer = spec.family.linear(index, WRITERS[block])
            values[f"{writer}.rows"] = _closed(generator, spec.hidden_size, 1)
        width = layer.num_heads * layer.head_dim
        values[f"{spec.family.linear(index, QUERY)}.rows"] = _closed(generator, width, 1)
        values[f"{spec.family.linear(index, OUTPUT)}.columns"] = _closed(generator, width, 1)
    return values


def _closed(generator: np.random.Generator, size: int, count: int) -> NDArray[np.float32]:
    gates = np.ones(size, np.float32)
    gates[generator.permutation(size)[:count]] = 0
    return gates
