"""Experts in 4 bits (MXFP4), as the published gpt-oss folders have them: read as bf16.

Where a stock folder has a stack [experts, in, out], these have two tensors: `<stack>_blocks` uint8
[experts, out, in / 32, 16], two numbers (e2m1) a byte, the first in the low bits, and
`<stack>_scales` uint8 [experts, out, in / 32], exponents of 2 plus 127 (e8m0). The values and their
order are those of transformers 5.19 (`Mxfp4Config(dequantize=True)`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.families import FAMILIES
from sgate_serve.checkpoint.int8 import CONFIG_KEY, METHOD
from sgate_serve.checkpoint.tensor_files import Array, TensorInfo
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import OBJECT, TEXTS, check_fields

MXFP4 = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
BLOCK, BLOCK_BYTES = 32, 16
EXPONENT_BIAS, NOT_A_NUMBER = 127, 255
NOTE = "experts are stored in 4 bits (MXFP4) and read as bf16, as transformers dequantizes them"
REMEDY = "download or copy the checkpoint again"

POSITIVE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([POSITIVE, -POSITIVE])
# Byte → its two numbers.
PAIRS = np.stack([np.tile(VALUES, 16), np.repeat(VALUES, 16)], axis=-1)


def is_mxfp4(config: Mapping[str, Any], source: str) -> bool:
    """Say whether a config describes experts in 4 bits.

    `modules_to_not_convert` is not followed, as in transformers: a tensor is in 4 bits if it is
    stored so. Raises CheckpointError for another family, whose class has other stacks.
    """
    check_fields(config, {CONFIG_KEY: OBJECT}, source, CheckpointError)
    block = config.get(CONFIG_KEY)
    if block is None or block.get(METHOD) != MXFP4:
        return False
    fields = {"modules_to_not_convert": TEXTS}
    check_fields(block, fields, f"{source}: {CONFIG_KEY}", CheckpointError)
    packed = [name for name, each in FAMILIES.items() if each.mixture and each.mixture.is_packed]
    if config.get("model_type") not in packed:
        raise CheckpointError(
            f"{source}: {CONFIG_KEY}: {METHOD} {MXFP4} is read for {', '.join(packed)}, not for "
            f"model_type {brief(config.get('model_type'))}; give the unquantized checkpoint"
        )
    return True


@dataclass(frozen=True)
class PackedStack(TensorInfo):
    """A stack [experts, in, out] in bf16, whose blocks and scales are what the file has.

    `start` and `end` are those of the blocks.
    """

    blocks: TensorInfo
    scales: TensorInfo

    @property
    def num_bytes(self) -> int:
        return self.blocks.num_bytes + self.scales.num_bytes

    @property
    def in_files(self) -> tuple[TensorInfo, ...]:
        return self.blocks, self.scales

    def read(self) -> Array:
        """Return the stack; raise CheckpointError for a scale that is no number."""
        return self.part(lambda stack: stack.swapaxes(1, 2)).swapaxes(1, 2)

    def part(self, select: Callable[[Array], Array]) -> Array:
        """Return what `select` takes of the stack, [..., in], without reading the rest.

        It is given the blocks, and the scales, as single items in the order of the stack.
        """
        whole = self.blocks.read().view(f"V{BLOCK_BYTES}")[..., 0]
        blocks, scales = (
            np.ascontiguousarray(select(items.swapaxes(1, 2)))
            for items in (whole, self.scales.read())
        )
        if (scales == NOT_A_NUMBER).any():
            raise CheckpointError(
                f"{self.scales.file}: tensor {self.scales.name} holds {NOT_A_NUMBER}, which is no "
                f"number (NaN); {REMEDY}"
            )
        return dequantized(blocks.view(np.uint8).reshape(*scales.shape, BLOCK_BYTES), scales)


def dequantized(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Array:
    """Return the bf16 numbers [..., groups · 32] of blocks [..., groups, 16] and scales."""
    powers = np.ldexp(np.float32(1), scales.astype(np.int32) - EXPONENT_BIAS)
    values = PAIRS[blocks].reshape(*scales.shape, BLOCK)
    with np.errstate(over="ignore"):  # infinite in transformers, too
        values *= powers[..., None]
    # Every product is a number of bf16, so that the lower half of its bits is zero.
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    return upper.reshape(*scales.shape[:-1], -1).view(ml_dtypes.bfloat16)


def with_packed_stacks(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return tensors with each pair of blocks and scales as the stack that it stands for.

    Raises CheckpointError for one without the other, and for other types and shapes.
    """
    found = dict[str, TensorInfo]()
    for name, info in tensors.items():
        if not is_packed_name(name):
            found[name] = info
            continue
        stack = name.removesuffix(BLOCKS).removesuffix(SCALES)
        if stack in tensors:
            raise CheckpointError(
                f"{info.file}: tensor {stack} is there in 4 bits, too ({name}); keep one of them"
            )
        if stack not in found:
            found[stack] = _packed(stack, tensors)
    return found


def is_packed_name(name: str) -> bool:
    """Say whether a tensor holds blocks or scales of experts."""
    return ".experts." in name and name.endswith((BLOCKS, SCALES))


def _packed(name: str, tensors: Mapping[str, TensorInfo]) -> PackedStack:
    for own, other in ((BLOCKS, SCALES), (SCALES, BLOCKS)):
        if name + own not in tensors:
            there = tensors[name + other]
            raise CheckpointError(
                f"{there.file}: tensor {there.name} is there without {name + own}; {REMEDY}"
            )
    blocks, scales = tensors[name + BLOCKS], tensors[name + SCALES]
    for info in (blocks, scales):
        if (fault := packing_fault(info, blocks)) is not None:
            raise CheckpointError(f"{info.file}: tensor {info.name} {fault}; {REMEDY}")
    experts, outputs, groups, _ = blocks.shape
    place = (blocks.file, "BF16", (experts, groups * BLOCK, outputs), blocks.start, blocks.end)
    return PackedStack(name, *place, blocks=blocks, scales=scales)


def packing_fault(info: TensorInfo, blocks: TensorInfo) -> str | None:
    """Say what is wrong with blocks, or with the scales of `blocks`; None if nothing is."""
    if info.dtype != "U8":
        return f"is stored as {info.dtype}, expected U8"
    if info is blocks:
        if len(info.shape) != 4 or 0 in info.shape or info.shape[-1] != BLOCK_BYTES:
            return (
                f"has shape {list(info.shape)}, expected [experts, out, in / {BLOCK}, "
                f"{BLOCK_BYTES}]"
            )
    elif info.shape != blocks.shape[:-1]:
        return (
            f"has shape {list(info.shape)}, expected {list(blocks.shape[:-1])}, one for each block"
        )
    return None
