"""The decoder graph: embedding, layers of attention and MLP, final norm, head.

Tokens of all rows are packed; only attention sees rows. The contrib operators of ONNX Runtime share
past and present buffers and accept ragged rows. Widths come from the spec, layer by layer; a layer
may lack attention, the MLP or both. Families differ only in data: their table entry and the spec.
A classifier or base model reads whole prompts, so its graph has no KV cache.
"""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from converters.to_onnx import linears
from converters.to_onnx.activations import mlp_units
from converters.to_onnx.graph import GraphBuilder
from converters.to_onnx.heads import HeadLayout
from converters.to_onnx.histories import Histories
from converters.to_onnx.key_value_cache import NO_SCALES, CacheScales, KeyValueCache
from converters.to_onnx.matrices import Moments
from converters.to_onnx.metadata import graph_metadata
from converters.to_onnx.mixture import MixtureBlock
from converters.to_onnx.norms import Norms
from converters.to_onnx.packing import Packing
from converters.to_onnx.products import Products
from converters.to_onnx.recurrence import RecurrentBlocks
from converters.to_onnx.rescaling import NO_EXPONENTS, Exponents
from converters.to_onnx.residual import ResidualStream
from converters.to_onnx.rope import max_positions
from converters.to_onnx.rotary_tables import MAX_CAPACITY, RotaryTables
from converters.to_onnx.sequence_output import add_sequence_output
from sgate_serve.architecture.family import ATTENTION, CAUSAL_LM, MLP, OUTPUT_GATE
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.onnx_format import names
from sgate_serve.onnx_format.names import MICROSOFT
from sgate_serve.onnx_format.precision import FP32, PRECISIONS, Precision

Block = Callable[[int, ir.Value], ir.Value]
# GroupQueryAttention's value for a window without a limit.
UNLIMITED_WINDOW = -1


def build_decoder(
    checkpoint: Checkpoint,
    precision: Precision = PRECISIONS[FP32],
    moments: Moments | None = None,
    exponents: Exponents = NO_EXPONENTS,
    scales: CacheScales = NO_SCALES,
) -> ir.Model:
    """Return the graph of a checkpoint; weights are read and rounded when it is saved.

    Raises EngineError for a rope type that the graph cannot express.
    """
    return _Decoder(checkpoint, precision, moments, exponents, scales).build()


class _Decoder:
    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: Precision,
        moments: Moments | None,
        exponents: Exponents,
        scales: CacheScales,
    ) -> None:
        self.checkpoint, self.spec, self.precision = checkpoint, checkpoint.spec, precision
        self.capacity = min(max_positions(self.spec), MAX_CAPACITY)
        self.graph = graph = GraphBuilder(
            ir.DataType.FLOAT16 if precision.float_bytes == 2 else ir.DataType.FLOAT
        )
        int32, int64 = ir.DataType.INT32, ir.DataType.INT64
        self.input_ids = graph.input(names.INPUT_IDS, int64, ["t"])
        self.packing = Packing(graph)
        self.seqlens_k = graph.input(names.SEQLENS_K, int32, ["b"])
        self.total_length = graph.input(names.TOTAL_SEQUENCE_LENGTH, int32, [])
        self.query_seqlens: ir.Value | None = None
        if self.generates:
            self.query_seqlens = graph.input(names.QUERY_SEQLENS, int32, ["b"])
        self.cache = KeyValueCache(graph, self.spec, scales)
        self.products = Products(graph, self.input_ids, precision, moments)
        self.exponents, self.norms = exponents, Norms(graph, checkpoint, exponents)
        # The kernel also rotates padding, at positions after the last that a row can have.
        self.tables = RotaryTables(graph, self.capacity + names.MAX_CHUNK)

    def build(self) -> ir.Model:
        family = self.spec.family
        stream = ResidualStream(self.graph, self.embed())
        for index in range(len(self.spec.layers)):
            if self.spec.has_parallel_blocks:
                self.parallel_blocks(index, stream)
            else:
                self.blocks(index, stream)
            if (scale := family.scale_name(index)) is not None:
                stream.scale(self.stored(scale, 1))
            stream.end_layer(index)
        normed = stream.normalize(self.norms.over_stream(self.final_norm))
        if self.generates:
            self.head(normed)
        else:
            add_sequence_output(self.graph, self.products, self.checkpoint, normed)
        return self.graph.model(graph_metadata(self.checkpoint, self.capacity, self.precision))

    def blocks(self, index: int, stream: ResidualStream) -> None:
        """Add each block of a layer to the stream before the next one reads it."""
        for block, compute in self.computed(index):
            x = stream.read(self.norms.before(index, block))
            if block == MLP and self.has_branch(index):
                experts = MixtureBlock(self.graph, self.products, self.checkpoint, index)
                delta = experts.beside(x, stream.current(), self.norms)
            else:
                delta = compute(index, x)
            stream.add(self.added(index, block, delta))

    def parallel_blocks(self, index: int, stream: ResidualStream) -> None:
        """Add the sum of a layer's blocks to the stream, which both read before."""
        computed = self.computed(index)
        reads = [stream.read(self.norms.before(index, block)) for block, _ in computed]
        deltas = [
            self.added(index, block, compute(index, x))
            for (block, compute), x in zip(computed, reads, strict=True)
        ]
        if deltas:
            stream.add(deltas[0] if len(deltas) == 1 else self.graph.node("Add", deltas)[0])

    def computed(self, index: int) -> list[tuple[str, Block]]:
        """Return the blocks that a layer has, and what computes each."""
        shape, found = self.spec.layers[index], list[tuple[str, Block]]()
        attention = self.recurrence if shape.is_recurrent else self.attention
        found += [(ATTENTION, attention)] if shape.num_heads else []
        found += [(MLP, self.mlp)] if shape.mlp_units else []
        return found

    @cached_property
    def recurrence(self) -> RecurrentBlocks:
        lengths = self.query_seqlens
        if lengths is None:
            one = self.graph.constant("lengths.one", np.array(1, np.int32))
            (lengths,) = self.graph.node("Add", [self.seqlens_k, one])
        histories = Histories(self.graph, self.packing, lengths, self.spec.kernel)
        rescale = partial(self.rescaled, ATTENTION)
        return RecurrentBlocks(self.graph, self.products, self.checkpoint, histories, rescale)

    def has_branch(self, index: int) -> bool:
        """Say whether a layer has experts that read the stream beside its MLP."""
        return bool(self.spec.layers[index].experts) and self.spec.family.branch(index) is not None

    @property
    def generates(self) -> bool:
        return self.spec.task == CAUSAL_LM

    def added(self, index: int, block: str, x: ir.Value) -> ir.Value:
        """Apply the norm after a block and the factor on it, in families that have them."""
        family, factor = self.spec.family, self.spec.residual_multiplier
        if block in family.post_norms:
            name = f"{family.layer_name(index)}.{family.post_norms[block]}"
            x = self.norms.over_stream(name).apply(x)
        return x if factor == 1 else self.graph.node("Mul", [x, self.number(factor)])[0]

    def embed(self) -> ir.Value:
        spec = self.spec
        embedded = self.token_rows()
        if spec.embedding_scale is not None:
            (embedded,) = self.graph.node("Mul", [embedded, self.number(spec.embedding_scale)])
        if spec.family.position_table is None:
            return embedded
        positions = self.graph.input(names.POSITION_IDS, ir.DataType.INT64, ["t"])
        rows = linears.position_table(self.checkpoint)
        return self.graph.node("Add", [embedded, self.products.rows(rows, positions)])[0]

    def token_rows(self) -> ir.Value:
        """Return the embeddings of the tokens; with a tied head, from its one matrix."""
        name, count = f"{self.spec.family.embedding}", self.spec.vocab_size
        if not self.spec.tied_head:
            table = linears.table(self.checkpoint, name, count)
            return self.products.rows(table, self.input_ids)
        (table,) = self.head_linear.matrices
        rows = self.products.rows(table, self.input_ids)
        if (exponents := self.exponents.get(self.final_norm)) is None:
            return rows
        powers = self.graph.constant(f"{name}.powers", np.ldexp(np.float32(1), -exponents))
        return self.graph.node("Mul", [rows, powers])[0]

    def attention(self, index: int, x: ir.Value) -> ir.Value:
        shape, heads = self.spec.layers[index], HeadLayout.of(self.spec, index)
        projected = self.products.linear(self.first_linear(index, ATTENTION), x)
        projected, gate = self.without_gate(index, projected)
        packed = self.packing.unpack(projected)
        # A model that does not generate has no cache, and expects rows padded on the right.
        past = self.cache.past(index) if self.generates else [None, None]
        inputs = [*self.query_key_value(index, packed), *past]
        inputs += [self.seqlens_k, self.total_length, *self.rotary(index, heads)]
        attended, *present = self.graph.node(
            "GroupQueryAttention",
            [*inputs, *self.last_inputs(index)],
            {
                "num_heads": shape.num_heads,
                "kv_num_heads": shape.num_kv_heads,
                "do_rotary": int(self.spec.ropes[index] is not None),
                "scale": self.spec.attention_scales[index],
                "softcap": self.spec.attention_softcap or 0.0,
                "local_window_size": self.spec.windows[index] or UNLIMITED_WINDOW,
                **self.cache.attributes,
            },
            outputs=[f"layer.{index}.{part}" for part in ("attended", "keys", "values")],
            domain=MICROSOFT,
        )
        if self.generates:
            self.cache.present(index, present)
        heads_out = self.packing.pack(attended, shape.num_heads * heads.width)
        if gate is not None:
            (opened,) = self.graph.node("Sigmoid", [gate])
            (heads_out,) = self.graph.node("Mul", [heads_out, opened])
        return self.products.linear(linears.attention_output(self.checkpoint, index), heads_out)

    def without_gate(self, index: int, projected: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """Return query, key and value of [q | gate | k | v], and the gate if the layer has one."""
        if OUTPUT_GATE not in self.spec.linear_shapes(index):
            return projected, None
        shape, width = self.spec.layers[index], HeadLayout.of(self.spec, index).width
        others = (1 + shape.has_values) * shape.num_kv_heads
        sizes = np.array([shape.num_heads, shape.num_heads, others]) * width
        query, gate, rest = self.graph.node(
            "Split",
            [projected, self.graph.constant(f"layer.{index}.gated_heads", sizes)],
            {"axis": -1},
            outputs=[f"layer.{index}.{part}" for part in ("queries", "output_gate", "key_value")],
        )
        return self.graph.node("Concat", [query, rest], {"axis": -1})[0], gate

    def last_inputs(self, index: int) -> list[ir.Value | None]:
        """Return inputs 9 to 16 of attention: sinks, scales of the cache and the rows' lengths.

        The others are position ids, a bias, and weights of norms.
        """
        sinks = self.sinks(index)
        if self.query_seqlens is not None:
            return [None, None, sinks, *self.cache.scales(index), None, None, self.query_seqlens]
        return [] if sinks is None else [None, None, sinks]

    def sinks(self, index: int) -> ir.Value | None:
        """Return the logits [heads] of which each takes a share of its head's attention, if any."""
        name = self.spec.sinks(index)
        return None if name is None else self.stored(name, self.spec.layers[index].num_heads)

    def first_linear(self, index: int, block: str) -> linears.Linear:
        """Return the linear that reads the stream, rescaled if the norm that it reads is."""
        return self.rescaled(block, index, linears.first_linear(self.checkpoint, index, block))

    def rescaled(self, block: str, index: int, linear: linears.Linear) -> linears.Linear:
        """Rescale a linear that reads the norm before a block if that is."""
        family = self.spec.family
        norm = family.norm_name(index, block) if block in family.norms else ""
        return self.rescaled_after(norm, linear)

    @cached_property
    def head_linear(self) -> linears.Linear:
        return self.rescaled_after(self.final_norm, linears.head(self.checkpoint))

    @property
    def final_norm(self) -> str:
        return f"{self.spec.family.final_norm}"

    def rescaled_after(self, norm: str, linear: linears.Linear) -> linears.Linear:
        """Return a linear that reads a norm, rescaled if that is."""
        return linears.rescaled(linear, self.exponents[norm]) if norm in self.exponents else linear

    def query_key_value(self, index: int, packed: ir.Value) -> list[ir.Value | None]:
        """Return the inputs of attention: packed, or split where query and key have norms."""
        family, shape = self.spec.family, self.spec.layers[index]
        heads = HeadLayout.of(self.spec, index)
        if not family.head_norms:
            return [packed, None, None]
        counts = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        held = counts if shape.has_values else counts[:2]
        sizes = np.array(held, np.int64) * heads.width
        parts = self.graph.node(
            "Split",
            [packed, self.graph.constant(f"layer.{index}.heads", sizes)],
            {"axis": -1},
            outputs=[f"layer.{index}.{part}" for part in ("query", "key", "value")[: len(held)]],
        )
        parts = parts if shape.has_values else [*parts, parts[1]]
        names = [f"{family.layer_name(index)}.{norm}" for norm in family.head_norms]
        if family.has_joint_head_norms:
            for part, (name, count) in enumerate(zip(names, counts, strict=False)):
                parts[part] = self.norms.over_heads(name, heads, count).apply(parts[part])
            return [*parts]
        apart = self.graph.constant(f"heads.{heads.width}", np.array([0, 0, -1, heads.width]))
        together = self.graph.constant("heads", np.array([0, 0, -1]))
        norms = [self.norms.over_heads(name, heads) for name in names]
        norms += [self.norms.over_values(heads)] if family.has_value_norm else []
        for part, norm in enumerate(norms):
            (rows,) = self.graph.node("Reshape", [parts[part], apart])
            (parts[part],) = self.graph.node("Reshape", [norm.apply(rows), together])
        return [*parts]

    def mlp(self, index: int, x: ir.Value) -> ir.Value:
        """Return down(act(gate) · up), or down(act(up)) in families without a gate."""
        if self.spec.layers[index].experts:
            return MixtureBlock(self.graph, self.products, self.checkpoint, index)(x)
        packed = self.products.linear(self.first_linear(index, MLP), x)
        units = mlp_units(self.graph, self.spec, index, packed)
        return self.products.linear(linears.mlp_down(self.checkpoint, index), units)

    def head(self, x: ir.Value) -> None:
        """Compute the logits of the requested tokens only: the head is the largest matrix."""
        logit_index = self.graph.input(names.LOGIT_INDEX, ir.DataType.INT64, ["n"])
        (wanted,) = self.graph.node("Gather", [x, logit_index], {"axis": 0})
        logits = self.products.linear(self.head_linear, wanted)
        logits = self.softcapped(self.divided(self.graph.in_fp32(logits)))
        self.graph.output_in_fp32(logits, names.LOGITS, ["n", self.spec.vocab_size])

    def divided(self, logits: ir.Value) -> ir.Value:
        if self.spec.logit_divisor == 1:
            return logits
        divisor = self.graph.constant("divisor", np.array(self.spec.logit_divisor, np.float32))
        return self.graph.node("Div", [logits, divisor])[0]

    def softcapped(self, logits: ir.Value) -> ir.Value:
        """Return cap · tanh(logits / cap), or the logits unchanged if the model has no cap."""
        if self.spec.logit_softcap is None:
            return logits
        cap = self.graph.constant("softcap", np.array(self.spec.logit_softcap, np.float32))
        (divided,) = self.graph.node("Div", [logits, cap])
        (bounded,) = self.graph.node("Tanh", [divided])
        return self.graph.node("Mul", [bounded, cap])[0]

    def number(self, value: float) -> ir.Value:
        kind = self.graph.float_type.numpy()
        return self.graph.constant(f"number.{value}", np.array(value, kind))

    def stored(self, name: str, size: int) -> ir.Value:
        """Return a vector of the model."""
        return self.graph.weight(name, (size,), partial(linears.read_fp32, self.checkpoint, name))

    def rotary(self, index: int, heads: HeadLayout) -> list[ir.Value | None]:
        rope = self.spec.ropes[index]
        return [None, None] if rope is None else [*self.tables.of(rope, heads)]
