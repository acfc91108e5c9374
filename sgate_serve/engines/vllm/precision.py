"""The precision in which vLLM holds a model: int8 as the folder stores it, else its own choice."""

from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format.precision import Precision

# torch's names of the types that vLLM computes in → those in files, and bits.
FLOATS = {"float32": ("F32", 32), "float16": ("F16", 16), "bfloat16": ("BF16", 16)}


def held_precision(model: Checkpoint, dtype: str) -> Precision:
    """Return the precision of a model's matrices in vLLM, which computes in `dtype`.

    Only matrices inside the blocks can be int8. By itself vLLM computes a folder of fp32 in 16
    bits.
    """
    name, bits = FLOATS[dtype]
    return Precision(INT8, 8, bits) if model.is_int8 else Precision(name, bits, bits)
