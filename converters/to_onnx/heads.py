"""Zero-padding of attention heads to a width that ONNX Runtime's fused rotary kernel accepts.

The kernel rotates dimension i of a head with dimension i + width/2. So the padding goes to the end
of each half, which keeps rotary pairs together; dimensions that do not rotate fill the remaining
places, where the tables rotate by zero. Query, key and value are permuted alike, and zeros add
nothing to scores or outputs, so the layout is exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.plan.targets import ONNX_HEAD_MULTIPLE


@dataclass(frozen=True)
class HeadLayout:
    """The places of a head's dimensions in the padded head; the first `rotary_dims` rotate."""

    head_dim: int
    rotary_dims: int

    @classmethod
    def of(cls, spec: ModelSpec, layer: int) -> "HeadLayout":
        return cls(spec.layers[layer].head_dim, spec.rotary_dims(layer))

    @property
    def num_pairs(self) -> int:
        return -(-self.rotary_dims // 2)

    @property
    def width(self) -> int:
        return -(-self.head_dim // ONNX_HEAD_MULTIPLE) * ONNX_HEAD_MULTIPLE

    def positions(self, num_heads: int) -> NDArray[np.int64]:
        """Return the place of each of the [heads * head_dim] dimensions once heads are padded."""
        first = np.arange(self.num_pairs, dtype=np.int64)
        rotated = np.concatenate([first, self.width // 2 + first])
        others = np.setdiff1d(np.arange(self.width), rotated)[: self.head_dim - len(rotated)]
        starts = np.arange(num_heads, dtype=np.int64)[:, None] * self.width
        positions: NDArray[np.int64] = starts + np.concatenate([rotated, others])
        return positions.reshape(-1)

    def pad_rows(self, array: Array) -> Array:
        """Pad a [heads * head_dim, ...] weight or bias to [heads * width, ...]."""
        num_heads = len(array) // self.head_dim
        padded = np.zeros((num_heads * self.width, *array.shape[1:]), array.dtype)
        padded[self.positions(num_heads)] = array
        return padded

    def pad_columns(self, array: Array) -> Array:
        """Pad a [out, heads * head_dim] weight to [out, heads * width]."""
        return self.pad_rows(array.T).T
