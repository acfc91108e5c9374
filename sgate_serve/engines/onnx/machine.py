"""What a machine can do with ONNX Runtime's kernels on a CPU."""

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort

from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.engines.machine import (
    PRODUCT_OPERATIONS,
    PRODUCT_ROWS,
    PRODUCT_SIZE,
    STREAM_BYTES,
    MachineRates,
    fastest_seconds,
)
from sgate_serve.environment import num_cpus
from sgate_serve.onnx_format.names import IR_VERSION, MICROSOFT, OPSET

ROW = 2**12
ONE, ZERO = np.array(1, np.float32), np.array(128, np.uint8)


def machine_rates(threads: int | None) -> MachineRates:
    """Measure the machine; ONNX Runtime has no products of fp16 or bf16 on x86."""
    stream = np.ones((STREAM_BYTES // 4 // ROW, ROW), np.float32)
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 256, (PRODUCT_ROWS, PRODUCT_SIZE), np.uint8)
    weights = generator.integers(-127, 128, (PRODUCT_SIZE, PRODUCT_SIZE), np.int8)
    integers: dict[str, Array] = {"weights": weights, "x_scale": ONE, "scale": ONE, "x_zero": ZERO}
    num_threads = threads or num_cpus()

    def seconds(op: str, x: Array, constants: Mapping[str, Array]) -> float:
        return fastest_seconds(_call(op, x, constants, num_threads))

    products = {
        "fp32": seconds(
            "MatMul", tokens.astype(np.float32), {"weights": weights.astype(np.float32)}
        ),
        "int8": seconds("MatMulIntegerToFloat", tokens, integers),
    }
    return MachineRates(
        read_bytes=stream.nbytes / seconds("ReduceMax", stream, {"axis": np.array([1])}),
        copied_bytes=2 * stream.nbytes / seconds("Neg", stream, {}),
        products={name: PRODUCT_OPERATIONS / time for name, time in products.items()},
    )


def _call(
    op: str, x: Array, constants: Mapping[str, Array], num_threads: int
) -> Callable[[], object]:
    """Return a call of one operator on `x` and constants, with a fp32 output."""
    import onnx_ir as ir  # slow to import, and not needed for serving

    entry = ir.val("x", dtype=ir.DataType.from_numpy(x.dtype), shape=x.shape)
    fixed = [ir.Value(name=k, const_value=ir.tensor(v, name=k)) for k, v in constants.items()]
    domain = MICROSOFT if op.startswith("MatMulInteger") else ""
    output = ir.val("y", dtype=ir.DataType.FLOAT)
    node = ir.Node(domain, op, [entry, *fixed], outputs=[output])
    imports = {"": OPSET, MICROSOFT: 1}
    graph = ir.Graph([entry], [output], nodes=[node], initializers=fixed, opset_imports=imports)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)
