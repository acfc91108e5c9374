"""The number formats of ONNX graphs, by their names in `--precision`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sgate_serve.architecture.family import DECAY, DOWN, KEY, QUERY, RENEWAL, VALUE
from sgate_serve.checkpoint.int8 import INT8
from sgate_serve.errors import EngineError, did_you_mean

FP32, FP16, INT4 = "fp32", "fp16", "int4"
SCALE_BYTES = 4
FLOAT_BITS = 16
# Where rounding to 4 bits costs a model most, for its size (benchmarks/results/int4_*.json).
SENSITIVE = (QUERY, KEY, VALUE, DOWN)
# Linears in floats in every precision: a few rows, whose errors a state adds up over all tokens.
IN_FLOATS = frozenset((RENEWAL, DECAY))


@dataclass(frozen=True)
class Precision:
    """The number format of one graph's matrices.

    A weight inside the blocks has `bits`; one of the token embedding or of the part on top of the
    stack has `outer_bits`, and so have the linears of the roles `finer`. With integers, `block`
    weights of a row share a scale (None: all of them), and norms, biases, activations and the KV
    cache are fp32. ONNX Runtime's kernels then round a token's product alike in every call with a
    multiple of `row_multiple` tokens.
    """

    name: str
    bits: int
    outer_bits: int
    block: int | None = None
    row_multiple: int = 1
    finer: tuple[str, ...] = ()
    # How many weights share a scale in experts, which multiply any number of tokens.
    expert_block: int | None = None
    # Whether most linears inside the blocks have one scale a row and one a token, not blocks.
    in_rows: bool = False
    # Whether keys and values are held in int8 instead of the floats that norms are in.
    int8_cache: bool = False

    @property
    def of_experts(self) -> "Precision":
        """The format of experts' matrices."""
        return replace(self, block=self.expert_block or self.block)

    @property
    def bytes_inside(self) -> float:
        """Bytes of one weight inside the blocks, including its share of scale and zero point."""
        return self._bytes(self.bits)

    @property
    def bytes_outside(self) -> float:
        """Bytes of one weight of the token embedding or of the part on top of the stack."""
        return self._bytes(self.outer_bits)

    @property
    def float_bytes(self) -> int:
        """Bytes of a number of a norm or bias."""
        return 4 if self.block is not None else self.outer_bits // 8

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are rounded to integers: a last bit may then decide a whole step."""
        return self.bits < FLOAT_BITS or self.int8_cache

    def _bytes(self, bits: int) -> float:
        if self.block is None:
            return bits / 8
        zero = bits / 8 if bits == 4 else 0
        return bits / 8 + (SCALE_BYTES + zero) / self.block


# Blocks are the largest whose products are exact token by token (AVX-512 VNNI, ONNX Runtime 1.32):
# of 8 bits 64; of 4 bits 32, or larger ones where tokens come in pairs, which is faster.
PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        FP32: Precision(FP32, bits=32, outer_bits=32),
        FP16: Precision(FP16, bits=16, outer_bits=16),
        INT8: Precision(INT8, bits=8, outer_bits=8, block=64),
        INT4: Precision(
            INT4,
            bits=4,
            outer_bits=8,
            block=128,
            row_multiple=2,
            finer=SENSITIVE,
            expert_block=32,
        ),
    }
)


# An encoder multiplies many tokens at a time, which is faster with one scale per row of weights and
# one per token, and exact token by token. It does not decode, so fewer bytes would not help it.
ENCODER_PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {FP32: PRECISIONS[FP32], INT8: Precision(INT8, bits=8, outer_bits=32)}
)


# Instructions of x86 CPUs that add products of unsigned and signed bytes in 32 bits.
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def suited_to(precision: Precision, flags: Iterable[str]) -> Precision:
    """Return the form of a decoder's precision that is fastest on a CPU with these instructions."""
    if precision.name == INT8 and precision.block is not None and not VNNI.isdisjoint(flags):
        return replace(precision, in_rows=True)
    return precision


def precision_named(name: str, *, is_encoder: bool = False) -> Precision:
    """Return the precision of a graph; raise EngineError for an unknown name."""
    known = ENCODER_PRECISIONS if is_encoder else PRECISIONS
    if name not in known:
        kind = "graphs of encoders" if is_encoder else "graphs"
        hint = did_you_mean(name, known)
        raise EngineError(f"precision {name!r}: ONNX {kind} are {', '.join(known)}{hint}")
    return known[name]
