"""The precision in which vLLM holds a model: as the folder stores it."""

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPES
from sgate_serve.onnx_format.precision import Precision


def stored_precision(model: Checkpoint) -> Precision:
    """Return the precision of a folder's matrices; only those inside the blocks can be int8."""
    info = model.tensors[f"{model.spec.family.embedding}.weight"]
    bits = 8 * DTYPES[info.dtype].itemsize
    return Precision(INT8 if model.is_int8 else info.dtype, 8 if model.is_int8 else bits, bits)
