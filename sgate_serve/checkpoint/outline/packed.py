"""Experts in 4 bits (MXFP4): blocks, their scales, and the sizes that they imply."""

from collections.abc import Iterator, Mapping

from sgate_serve.checkpoint.int8 import CONFIG_KEY, METHOD
from sgate_serve.checkpoint.mxfp4 import (
    BLOCK,
    BLOCKS,
    MXFP4,
    SCALES,
    is_packed_name,
    packing_fault,
)
from sgate_serve.checkpoint.outline.config import AnyConfig
from sgate_serve.checkpoint.outline.faults import Fault
from sgate_serve.checkpoint.tensor_files import CONFIG_FILE, TensorInfo

# Ending of a stack → the fields that its outputs and inputs are, and how often.
STREAM, UNITS = "hidden_size", "intermediate_size"
SIZES = {".gate_up_proj": ((UNITS, 2), (STREAM, 1)), ".down_proj": ((STREAM, 1), (UNITS, 1))}


def packed_faults(config: AnyConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[Fault]:
    """Yield where blocks, scales and biases contradict each other or the config."""
    names = [name for name in tensors if is_packed_name(name)]
    block = config.values.get(CONFIG_KEY)
    is_declared = isinstance(block, Mapping) and block.get(METHOD) == MXFP4
    # Scales alone may be those of another format.
    if not is_declared and not any(name.endswith(BLOCKS) for name in names):
        return
    if names and not is_declared:
        yield Fault(
            CONFIG_FILE,
            f"{CONFIG_KEY} does not say {METHOD} {MXFP4}, so transformers leaves out {names[0]}",
        )
    for stack in dict.fromkeys(name.removesuffix(BLOCKS).removesuffix(SCALES) for name in names):
        blocks, scales = tensors.get(stack + BLOCKS), tensors.get(stack + SCALES)
        if blocks is None or scales is None:
            yield Fault(stack, f"it has no {'blocks' if blocks is None else 'scales'}")
            continue
        for info in (blocks, scales):
            if (how := packing_fault(info, blocks)) is not None:
                yield Fault(info.name, f"it {how}")
        if packing_fault(blocks, blocks) is None:
            yield from _size_faults(stack, blocks, config, tensors)


def _size_faults(
    stack: str, blocks: TensorInfo, config: AnyConfig, tensors: Mapping[str, TensorInfo]
) -> Iterator[Fault]:
    """Yield the sizes of blocks [experts, out, in / 32, 16] that are not the config's."""
    _, outputs, groups, _ = blocks.shape
    found = {"outputs": outputs, "inputs": groups * BLOCK}
    fields = next((each for ending, each in SIZES.items() if stack.endswith(ending)), ())
    for (axis, size), (key, factor) in zip(found.items(), fields, strict=False):
        said = config.number((key,))
        if said is not None and size != said[1] * factor:
            yield Fault(
                blocks.name, f"it has {size} {axis}, but {CONFIG_FILE} says {key} {said[1]}"
            )
    bias = tensors.get(f"{stack}_bias")
    if bias is not None and bias.shape[-1:] != (outputs,):
        yield Fault(bias.name, f"it has shape {list(bias.shape)} for {outputs} outputs")
