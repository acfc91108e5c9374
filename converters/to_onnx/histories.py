"""Where the tokens of a call find the tokens before them, which a convolution in a layer reads.

Tokens are packed, and what earlier calls left of a row is in its state: the last `kernel` - 1
tokens. Both are rows of one table, the states first, and these indices are rows of that table. They
are the same for all layers, so a graph computes them once.
"""

from functools import cached_property

import numpy as np
import onnx_ir as ir

from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.packing import Packing


class Histories:
    """The indices of one graph; `lengths` [b] are how many tokens of a row are real."""

    def __init__(
        self, graph: GraphBuilder, packing: Packing, lengths: ir.Value, kernel: int
    ) -> None:
        self._graph, self.packing, self._past = graph, packing, kernel - 1
        (self._lengths,) = graph.node("Cast", [lengths], {"to": int(ir.DataType.INT64)})

    @cached_property
    def num_rows(self) -> ir.Value:
        """The number of rows, [1]."""
        return self._size(self.packing.unpack_index, 0)

    @cached_property
    def is_real(self) -> ir.Value:
        """1 where a place of a row is a token, 0 where it is padding, [b, s, 1]."""
        places = self._range(self._size(self.packing.unpack_index, 1))
        is_real = self._op("Less", places, self._column(self._lengths))
        (numbers,) = self._graph.node("Cast", [is_real], {"to": int(ir.DataType.FLOAT)})
        return self._op("Unsqueeze", numbers, self._number(2))

    @cached_property
    def read(self) -> ir.Value:
        """The rows of the table that a token's convolution multiplies, the oldest first [t, k]."""
        pack, longest = self.packing.pack_index, self._size(self.packing.unpack_index, 1)
        row, place = self._op("Div", pack, longest), self._op("Mod", pack, longest)
        taps = np.arange(self._past + 1)
        back = self._graph.constant("history.back", taps[::-1].copy())
        tokens = self._op("Sub", self._column(self._token(self._range(self._size(pack, 0)))), back)
        held = self._op("Add", self._op("Mul", row, self._number(self._past)), place)
        held = self._op("Add", self._column(held), self._graph.constant("history.taps", taps))
        is_new = self._op("GreaterOrEqual", self._column(place), back)
        return self._op("Where", is_new, tokens, held)

    @cached_property
    def left(self) -> ir.Value:
        """The rows of the table that stay in the state of each row, [b, k - 1]."""
        # Of what a row held and the tokens that it gets, these are the last.
        places = self._graph.constant("history.places", np.arange(self._past))
        last = self._op("Add", self._column(self._lengths), places)
        starts = self._op("Mul", self._range(self.num_rows), self._number(self._past))
        held = self._op("Add", self._column(starts), last)
        (first,) = self._graph.node(
            "Gather", [self.packing.unpack_index, self._number(0)], {"axis": 1}
        )
        tokens = self._op(
            "Sub", self._op("Add", self._token(first), last), self._number(self._past)
        )
        is_held = self._op("Less", last, self._number(self._past))
        return self._op("Where", is_held, held, tokens)

    def _token(self, index: ir.Value) -> ir.Value:
        """Return the rows of the table that packed tokens are."""
        return self._op("Add", index, self._op("Mul", self.num_rows, self._number(self._past)))

    def _op(self, op: str, *inputs: ir.Value) -> ir.Value:
        return self._graph.node(op, inputs)[0]

    def _size(self, x: ir.Value, axis: int) -> ir.Value:
        return self._graph.node("Shape", [x], {"start": axis, "end": axis + 1})[0]

    def _range(self, size: ir.Value) -> ir.Value:
        """Return the numbers below a size [1], from 0 on."""
        zero, one = (self._graph.constant(f"history.{n}", np.array(n)) for n in (0, 1))
        (stop,) = self._graph.node("Squeeze", [size])
        return self._op("Range", zero, stop, one)

    def _column(self, x: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", x, self._number(1))

    def _number(self, value: int) -> ir.Value:
        return self._graph.constant(f"history.[{value}]", np.array([value]))
