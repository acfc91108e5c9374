"""What rounded blocks mean, spelt out: the oracle of their packing and of the kernel."""

import numpy as np

from converters.to_onnx.integer_blocks import Blocks, Floats


def dequantized(blocks: Blocks, columns: int) -> Floats:
    """Return the matrix [rows, columns] in fp32."""
    rows, count = blocks.scales.shape
    values, zeros = blocks.values, np.full((rows, count), 128)
    if blocks.zeros is not None:
        values = np.stack([values % 16, values // 16], axis=-1).reshape(rows, count, -1)
        pairs = np.stack([blocks.zeros % 16, blocks.zeros // 16], axis=-1)
        zeros = pairs.reshape(rows, -1)[:, :count]
    steps = values.astype(np.int64) - zeros[..., None]
    weights: Floats = steps.astype(np.float32) * blocks.scales[..., None]
    return weights.reshape(rows, -1)[:, :columns]
