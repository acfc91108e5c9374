"""What values inside a graph are like while it reads tokens: moments, and largest magnitudes.

Not for serving: matrices of integers are rounded for them.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from converters.to_onnx.integer_blocks import Floats
from sgate_serve.onnx_format.names import GRAPH_FILE, PRESENT_PREFIX
from sgate_serve.onnx_format.one_call import graph_with_outputs, prefill_feeds

PRODUCT, WEIGHT = "FusedMatMul", ".weight"
# Of moments in memory at a time: the text is read once for every group of matrices that fits.
GROUP_BYTES = 2**31


class InputMoments:
    """For each of some matrices [out, in] of the graph, Σ x xᵀ [in, in] over its inputs x.

    `blocks` [n, s] are tokens. It is fast if matrices are asked for in the order of the graph.
    """

    def __init__(self, folder: Path, blocks: NDArray[np.int64], matrices: Container[str]) -> None:
        self._folder, self._blocks = folder, blocks
        inputs = _inputs(ir.load(folder / GRAPH_FILE))
        self._inputs = {name: found for name, found in inputs if name in matrices}
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
        for found in _values(self._folder, list(widths), self._blocks):
            for value, x in found.items():
                sums[value] += x.T @ x
        return {name: sums[self._inputs[name][0]] for name in matrices}


def largest_values(
    folder: Path, values: Sequence[str], blocks: NDArray[np.int64]
) -> dict[str, Floats]:
    """Return value [t, width] of the graph in `folder` → largest magnitudes [width].

    `blocks` [n, s] are tokens.
    """
    largest: dict[str, Floats] = {}
    for found in _values(folder, values, blocks):
        for name, x in found.items():
            here = np.abs(x).max(axis=0)
            largest[name] = np.maximum(largest.get(name, here), here)
    return largest


def present_values(folder: Path, blocks: NDArray[np.int64]) -> Iterator[dict[str, Floats]]:
    """Yield present output [KV heads, s, width] of the graph in `folder` for each of `blocks`."""
    session = _session((folder / GRAPH_FILE).read_bytes(), folder)
    outputs = (value.name for value in session.get_outputs())
    wanted = [name for name in outputs if name.startswith(PRESENT_PREFIX)]
    # Without attention nothing is held, and ONNX Runtime takes no outputs for all.
    for tokens in blocks if wanted else ():
        found = session.run(wanted, prefill_feeds(session, tokens))
        yield {name: row for name, (row,) in zip(wanted, found, strict=True)}


def _values(
    folder: Path, values: Sequence[str], blocks: NDArray[np.int64]
) -> Iterator[dict[str, Floats]]:
    """Yield the values of a graph for each block of tokens."""
    path, wanted = folder / GRAPH_FILE, list(values)
    session = _session(graph_with_outputs(ir.load(path), wanted, path), folder)
    for tokens in blocks:
        found = session.run(wanted, prefill_feeds(session, tokens))
        yield dict(zip(wanted, found, strict=True))


def _session(graph: bytes, folder: Path) -> Any:
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _inputs(model: ir.Model) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the name of each matrix with the name and the width of what it multiplies."""
    for node in model.graph:
        if node.op_type == PRODUCT:
            x, weight = node.inputs
            assert x is not None and weight is not None and weight.shape is not None
            yield f"{weight.name}".removesuffix(WEIGHT), (f"{x.name}", int(weight.shape.numpy()[1]))
