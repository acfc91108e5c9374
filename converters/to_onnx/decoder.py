"""The decoder graph: embedding, layers of attention and MLP, final norm, head; all in fp32.

Reads like the model. Operators are ONNX Runtime's contrib ones, which share past and present
buffers and take ragged rows. Widths come from the spec, layer by layer; a layer may lack
attention, MLP or both.
"""

from functools import partial

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import activate
from converters.to_onnx.graph import MICROSOFT, Dims, GraphBuilder
from converters.to_onnx.heads import padded_head_dim
from converters.to_onnx.indices import IndexedAxis
from converters.to_onnx.linears import Linear, Matrix
from converters.to_onnx.residual import ResidualStream
from converters.to_onnx.rope import inverse_frequencies, rotary_angles
from converters.to_onnx.supported import check_supported
from sgate_serve import onnx_format as names
from sgate_serve.checkpoint import Checkpoint
from sgate_serve.family import ATTENTION, MLP
from sgate_serve.tensor_files import Array

# Rotary tables longer than this cost more memory than the KV cache of one machine allows anyway.
MAX_CAPACITY = 32768
# What GroupQueryAttention takes for "attend to everything before".
UNLIMITED_WINDOW = -1


def build_decoder(checkpoint: Checkpoint) -> ir.Model:
    """Return the graph of a checkpoint; weights are read when it is saved.

    Raises EngineError for a family, task, rope type or activation that the graph cannot express.
    """
    check_supported(checkpoint)
    return _Decoder(checkpoint).build()


class _Decoder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.capacity = min(self.spec.max_positions, MAX_CAPACITY)
        self.graph = graph = GraphBuilder()
        int32, int64 = ir.DataType.INT32, ir.DataType.INT64
        self.input_ids = graph.input(names.INPUT_IDS, int64, ["b", "s"])
        self.seqlens_k = graph.input(names.SEQLENS_K, int32, ["b"])
        self.total_length = graph.input(names.TOTAL_SEQUENCE_LENGTH, int32, [])
        self.query_seqlens = graph.input(names.QUERY_SEQLENS, int32, ["b"])
        self.logit_positions = graph.input(names.LOGIT_POSITIONS, int64, ["b", "n"])
        self.indexed = IndexedAxis(graph, self.input_ids)

    def build(self) -> ir.Model:
        # A narrower stream has the same sum of squares: epsilon and weights make up for its mean.
        epsilon = self.spec.norm_eps * self.spec.norm_size / self.spec.hidden_size
        stream = ResidualStream(self.graph, self.embed(), epsilon)
        for index, shape in enumerate(self.spec.layers):
            if shape.num_heads:
                normed = stream.normalize(self.block_norm(index, ATTENTION))
                stream.add(self.attention(index, normed))
            if shape.mlp_units:
                normed = stream.normalize(self.block_norm(index, MLP))
                stream.add(self.mlp(index, normed))
            stream.end_layer(index)
        self.head(stream.normalize(self.norm_weight(f"{self.spec.family.final_norm}")))
        return self.graph.model(self.metadata())

    def embed(self) -> ir.Value:
        # The head's source names the embedding where the two are tied: one initializer for both.
        name = f"{self.spec.family.embedding}.weight"
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        table = self.graph.weight(name, shape, partial(linears.read_fp32, self.checkpoint, name))
        (embedded,) = self.graph.node("Gather", [table, self.input_ids], {"axis": 0})
        return embedded

    def attention(self, index: int, x: ir.Value) -> ir.Value:
        shape = self.spec.layers[index]
        width = padded_head_dim(shape.head_dim)
        past_dims: Dims = ["b", shape.num_kv_heads, f"past.{index}", width]
        past = [
            self.graph.input(f"{names.PAST_PREFIX}{index}.{kind}", ir.DataType.FLOAT, past_dims)
            for kind in ("key", "value")
        ]
        packed = self.linear(linears.query_key_value(self.checkpoint, index), x)
        cos, sin = self.rotary(shape.head_dim)
        # Inputs 1 and 2 are separate keys and values, 9 to 15 position ids, bias, sinks and scales.
        inputs = [packed, None, None, *past, self.seqlens_k, self.total_length, cos, sin]
        attended, *present = self.graph.node(
            "GroupQueryAttention",
            [*inputs, *[None] * 7, self.query_seqlens],
            {
                "num_heads": shape.num_heads,
                "kv_num_heads": shape.num_kv_heads,
                "do_rotary": 1,
                "scale": shape.head_dim**-0.5,
                "local_window_size": self.spec.windows[index] or UNLIMITED_WINDOW,
            },
            outputs=[f"layer.{index}.attended", "key", "value"],
            domain=MICROSOFT,
        )
        dims: Dims = ["b", shape.num_kv_heads, f"present.{index}", width]
        for kind, value in zip(("key", "value"), present, strict=True):
            self.graph.output(value, f"{names.PRESENT_PREFIX}{index}.{kind}", dims)
        return self.linear(linears.attention_output(self.checkpoint, index), attended)

    def mlp(self, index: int, x: ir.Value) -> ir.Value:
        packed = self.linear(linears.gate_up(self.checkpoint, index), x)
        halves = [f"layer.{index}.gate", f"layer.{index}.up"]
        gate, up = self.graph.node(
            "Split", [packed], {"axis": -1, "num_outputs": 2}, outputs=halves
        )
        active = activate(self.graph, self.spec.activation, gate)
        (product,) = self.graph.node("Mul", [active, up])
        return self.linear(linears.mlp_down(self.checkpoint, index), product)

    def head(self, x: ir.Value) -> None:
        """Compute logits at the wanted positions only: the head is the largest matrix."""
        last_axis = self.graph.constant("last_axis", np.array([-1], np.int64))
        (positions,) = self.graph.node("Unsqueeze", [self.logit_positions, last_axis])
        (wanted,) = self.graph.node("GatherND", [x, positions], {"batch_dims": 1})
        logits = self.linear(linears.head(self.checkpoint), wanted)
        self.graph.output(logits, names.LOGITS, ["b", "n", self.spec.vocab_size])

    def linear(self, linear: Linear, x: ir.Value) -> ir.Value:
        """Multiply by every matrix, put the products at their places, add the bias."""
        products = [self.product(matrix, x) for matrix in linear.matrices]
        y = products[0]
        if len(products) > 1:
            (y,) = self.graph.node("Concat", products, {"axis": -1})
        y = self.indexed.take(y, linear.products, f"{linear.name}.products")
        if linear.bias is None:
            return y
        bias = self.graph.weight(f"{linear.name}.bias", (linear.size,), linear.bias)
        return self.graph.node("Add", [y, bias])[0]

    def product(self, matrix: Matrix, x: ir.Value) -> ir.Value:
        # FusedMatMul takes [out, in] as stored, so a tied head needs no transposed copy; it is
        # packed at load and then as fast as MatMul.
        taken = self.indexed.take(x, matrix.inputs, f"{matrix.name}.inputs")
        weight = self.graph.weight(f"{matrix.name}.weight", matrix.shape, matrix.weight)
        return self.graph.node("FusedMatMul", [taken, weight], {"transB": 1}, domain=MICROSOFT)[0]

    def rotary(self, head_dim: int) -> list[ir.Value]:
        """Return the cos and sin tables, shared by all layers of this head width."""
        frequencies = inverse_frequencies(self.spec.rope, head_dim)
        angles = partial(rotary_angles, frequencies, self.capacity)
        shape = (self.capacity, padded_head_dim(head_dim) // 2)
        name = f"rope.{head_dim}"
        return [
            self.graph.weight(f"{name}.cos", shape, lambda: np.cos(angles())),
            self.graph.weight(f"{name}.sin", shape, lambda: np.sin(angles())),
        ]

    def block_norm(self, index: int, block: str) -> ir.Value:
        return self.norm_weight(self.spec.family.norm_name(index, block))

    def norm_weight(self, norm: str) -> ir.Value:
        """Return the weight of a norm over the stream, scaled where the stream was narrowed.

        The norm divides by the width before, the operator by the width of its input.
        """
        scale = np.sqrt(np.float64(self.spec.norm_size) / self.spec.hidden_size)

        def read() -> Array:
            weight = self.checkpoint.read(f"{norm}.weight").astype(np.float64)
            return np.asarray(weight * scale, np.float32)

        return self.graph.weight(f"{norm}.weight", (self.spec.hidden_size,), read)

    def metadata(self) -> dict[str, str]:
        return {
            names.META_VERSION: str(names.FORMAT_VERSION),
            names.META_FAMILY: self.spec.family.name,
            names.META_FINGERPRINT: self.checkpoint.fingerprint,
            names.META_CAPACITY: str(self.capacity),
            names.META_NUM_LAYERS: str(len(self.spec.layers)),
        }
