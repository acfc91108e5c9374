"""The types in which a file stores numbers, and how each is made from floats.

The blocks of Q8_0 and Q4_0 have 32 numbers of a row and one fp16 scale, see
https://github.com/ggml-org/llama.cpp/wiki/Tensor-Encoding-Schemes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.errors import PlanError
from sgate_serve.onnx_format.precision import FP16, FP32, INT4

F32, F16, BF16, Q8_0, Q4_0 = "F32", "F16", "BF16", "Q8_0", "Q4_0"


@dataclass(frozen=True)
class Storage:
    """The types of a file: of the matrices in the layers, and of the embedding and the head.

    Vectors are in F32. Rows that no whole number of blocks fills are in F16.
    """

    matrices: str
    tables: str
    file_type: int

    @property
    def block(self) -> int:
        """How many numbers of a row share a block; 1 for types without blocks."""
        return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.matrices]][0])

    def of_matrix(self, width: int) -> str:
        return self.matrices if width % self.block == 0 else F16

    def of_table(self, width: int) -> str:
        return self.tables if width % self.block == 0 else F16


_KINDS = gguf.LlamaFileType
# By `--precision`. The embedding and the head lose the most by 4 bits.
STORAGES: Mapping[str | None, Storage] = {
    None: Storage(F16, F16, _KINDS.MOSTLY_F16),
    FP32: Storage(F32, F32, _KINDS.ALL_F32),
    FP16: Storage(F16, F16, _KINDS.MOSTLY_F16),
    "bf16": Storage(BF16, BF16, _KINDS.MOSTLY_BF16),
    INT8: Storage(Q8_0, Q8_0, _KINDS.MOSTLY_Q8_0),
    INT4: Storage(Q4_0, Q8_0, _KINDS.MOSTLY_Q4_0),
}


def encoded(values: Array, kind: str, name: str) -> Array:
    """Return an array in the bytes of its type; raise PlanError where fp16 overflows."""
    if kind == F32:
        return values.astype(np.float32)
    if kind != F16:
        return np.asarray(gguf.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind]))
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise PlanError(
            f"{name} has values beyond fp16 in a GGUF file; add --precision bf16 or fp32"
        )
    return rounded


def encoded_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Return the shape of `encoded`, whose last axis counts bytes for all types but F32 and F16."""
    if kind in (F32, F16):
        return shape
    sizes = gguf.quants.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind])
    return tuple(sizes)


def element_type(kind: str) -> np.dtype[np.generic]:
    """Return the dtype of `encoded`."""
    return np.dtype({F32: np.float32, F16: np.float16}.get(kind, np.uint8))
