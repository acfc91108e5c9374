"""Second moments of what the matrices of an fp32 graph multiply, while the graph reads a text.

Not for serving: graphs in 4 bits are rounded with them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sgate_serve.engines.model_protocols import Floats, Tokens
from sgate_serve.engines.onnx.engine import graph_path, inner_values

PRODUCT, WEIGHT = "FusedMatMul", ".weight"
# Of moments in memory at a time: the text is read once for every group of matrices that fits.
GROUP_BYTES = 2**31


class InputMoments:
    """For each matrix [out, in] of the graph, Σ x xᵀ [in, in] over its inputs x.

    `blocks` [n, s] are tokens. It is fast if matrices are asked for in the order of the graph.
    """

    def __init__(self, folder: Path, blocks: Tokens) -> None:
        self._folder, self._blocks = folder, blocks
        self._inputs = dict(_inputs(ir.load(graph_path(folder))))
        self._group: dict[str, Floats] = {}

    def of(self, matrix: str) -> Floats:
        if matrix not in self._group:
            self._group = {}  # freed before the next is made, since both may be large
            self._group = self._read(self._from(matrix))
        return self._group[matrix]

    def _from(self, matrix: str) -> list[str]:
        """Return the matrix and as many of those after it as fit the memory."""
        names = list(self._inputs)
        following = names[names.index(matrix) :]
        sizes = np.cumsum([4 * self._inputs[name][1] ** 2 for name in following])
        return following[: max(1, int((sizes <= GROUP_BYTES).sum()))]

    def _read(self, matrices: list[str]) -> dict[str, Floats]:
        widths = {self._inputs[name][0]: self._inputs[name][1] for name in matrices}
        sums = {value: np.zeros((width, width), np.float32) for value, width in widths.items()}
        for inputs in inner_values(self._folder, list(widths), self._blocks):
            for value, x in zip(widths, inputs, strict=True):
                sums[value] += x.T @ x
        return {name: sums[self._inputs[name][0]] for name in matrices}


def _inputs(model: ir.Model) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the name of each matrix with the name and the width of what it multiplies."""
    for node in model.graph:
        if node.op_type == PRODUCT:
            x, weight = node.inputs
            assert x is not None and weight is not None and weight.shape is not None
            yield f"{weight.name}".removesuffix(WEIGHT), (f"{x.name}", int(weight.shape.numpy()[1]))
