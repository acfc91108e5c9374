"""The rotary tables of one graph: a cosine and a sine for each position and pair."""

from functools import partial

import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.rope import TABLE_PREFIX, RotaryTable
from sgate_serve.architecture.rope import Rope

# The attention of a longer sequence would not fit one machine, so longer tables are useless.
MAX_CAPACITY = 32768


class RotaryTables:
    """Tables of `length` positions, shared by all layers with the same rotation."""

    def __init__(self, graph: GraphBuilder, length: int) -> None:
        self._graph, self._length = graph, length
        self._names: dict[bytes, str] = {}

    def of(self, rope: Rope, heads: HeadLayout) -> tuple[ir.Value, ir.Value]:
        """Return cos and sin, [length, width / 2]; raise EngineError as `RotaryTable.of` does."""
        table, length = RotaryTable.of(rope.settings, heads), self._length
        key = table.frequencies.tobytes() + table.amplitudes.tobytes()
        name = self._names.setdefault(key, f"{TABLE_PREFIX}{len(self._names)}")
        shape = (length, len(table.frequencies))
        return (
            self._graph.weight(f"{name}.cos", shape, partial(table.cos, length)),
            self._graph.weight(f"{name}.sin", shape, partial(table.sin, length)),
        )
