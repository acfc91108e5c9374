"""Int8 products in rows on CPUs that would add them up wrongly.

x86 CPUs without VNNI multiply unsigned activations by signed weights in pairs and add both products
in 16 bits, where large sums saturate: without an error, a few outputs are far off. For two unsigned
factors ONNX Runtime's kernels add in 32 bits on every CPU. So there 128 is added to the weights,
and their zero point is 128, which gives the same sums.
"""

import logging
import platform
from pathlib import Path

from sgate_serve.environment import cpu_flags
from sgate_serve.onnx_format.precision import VNNI

logger = logging.getLogger(__name__)

PRODUCT = "MatMulIntegerToFloat"
# The inputs of PRODUCT, by position: activations and weights, their scales, their zero points.
WEIGHT, ZERO, WEIGHT_ZERO = 1, 4, 5
X86 = {"x86_64", "amd64", "i686"}
SIGN_BIT = 128


def for_this_cpu(graph: str | bytes) -> str | bytes:
    """Return a graph, given as a path or as bytes, whose products in rows this CPU adds exactly."""
    if adds_exactly():
        return graph
    data = Path(graph).read_bytes() if isinstance(graph, str) else graph
    if PRODUCT.encode() not in data:
        return graph
    logger.info(
        "onnx engine: this CPU is not known to have VNNI; int8 products in rows are computed in "
        "another way, with the same sums, but perhaps more slowly"
    )
    return with_unsigned_weights(data)


def adds_exactly() -> bool:
    """Return whether this CPU adds products of unsigned and signed bytes without saturation.

    Instructions that are not known, as outside Linux, count as missing.
    """
    return platform.machine().lower() not in X86 or not VNNI.isdisjoint(cpu_flags())


def with_unsigned_weights(graph: bytes) -> bytes:
    """Return a graph whose products in rows have unsigned weights.

    The file of weights stays as it is: ONNX Runtime adds 128 when it loads them.
    """
    import onnx  # slow to import, and not needed on most CPUs
    import onnx_ir as ir

    model = ir.from_proto(onnx.load_model_from_string(graph))
    sign = ir.Value(name="rows.sign", const_value=ir.tensor(SIGN_BIT, ir.DataType.UINT8))
    model.graph.register_initializer(sign)
    for node in list(model.graph):
        if node.op_type == PRODUCT:
            to = {"to": int(ir.DataType.UINT8)}
            cast = ir.node("Cast", [node.inputs[WEIGHT]], to)
            flipped = ir.node("BitwiseXor", [cast.outputs[0], sign])
            model.graph.insert_before(node, [cast, flipped])
            node.replace_input_with(WEIGHT, flipped.outputs[0])
            node.resize_inputs(WEIGHT_ZERO + 1)
            node.replace_input_with(WEIGHT_ZERO, node.inputs[ZERO])
    unsigned: bytes = ir.to_proto(model).SerializeToString()
    return unsigned
