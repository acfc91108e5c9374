"""W8A8 int8 folders in the layout of compressed-tensors: names, config, checks and values.

The linears inside the blocks are int8 with one scale per output row; nothing else is quantized. Any
other `quantization_config` but that of `mxfp4.py` is refused by name. The format is docs/format.md,
"int8".
"""

from collections.abc import Iterable, Iterator, Mapping
from reprlib import repr as brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.tensor_files import Array, TensorInfo
from sgate_serve.errors import CheckpointError
from sgate_serve.json_fields import OBJECT, TEXTS, check_fields

INT8 = "int8"
CONFIG_KEY = "quantization_config"
SCALE = "weight_scale"

EIGHT_BITS: Mapping[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
GROUP: Mapping[str, Any] = {
    "targets": ["Linear"],
    "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
    "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
}
METHOD = "quant_method"
FORMAT = "int-quantized"
CONFIG: Mapping[str, Any] = {
    METHOD: "compressed-tensors",
    "format": FORMAT,
    "quantization_status": "compressed",
}
# Keys about how the numbers were found, or that repeat others; they do not change what is stored.
HARMLESS = frozenset({"ignore", "version", "global_compression_ratio", "observer"})


def int8_config(ignore: Iterable[str]) -> dict[str, Any]:
    """Return the `quantization_config` of an int8 folder; linears in `ignore` stay floats."""
    return {**CONFIG, "config_groups": {"group_0": dict(GROUP)}, "ignore": list(ignore)}


def float_linears(spec: ModelSpec) -> list[str]:
    """Return the linears outside the blocks, including lm_head, stored or tied, and routers."""
    on_top = (name for name, axes in spec.head.tensors.items() if len(axes) == 2)
    choosing = (spec.router_tensors(index) for index in range(len(spec.layers)))
    routers = (name for axes in choosing for name in axes if name.endswith(".weight"))
    names = (name.removesuffix(".weight") for name in (*on_top, *routers))
    return list(dict.fromkeys((spec.family.head, *names)))


def is_int8(config: Mapping[str, Any], source: str) -> bool:
    """Say whether a config describes an int8 folder; False for an unquantized one.

    Raises CheckpointError, naming `source` and the entry, for any other quantization.
    """
    check_fields(config, {CONFIG_KEY: OBJECT}, source, CheckpointError)
    block = config.get(CONFIG_KEY)
    if block is None:
        return False
    difference = next(_differences(block), None)
    if difference is not None:
        raise CheckpointError(
            f"{source}: {CONFIG_KEY}: {difference}; this release reads W8A8 int8 of "
            "compressed-tensors and nothing else quantized: give the unquantized checkpoint"
        )
    check_fields(block, {"ignore": TEXTS}, f"{source}: {CONFIG_KEY}", CheckpointError)
    return True


def _differences(block: Mapping[str, Any]) -> Iterator[str]:
    """Yield, in words, each difference from our block in what is stored or computed."""
    groups = block.get("config_groups")
    yield from _unequal({k: v for k, v in block.items() if k != "config_groups"}, CONFIG, "")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        yield f"config_groups is {brief(groups)}, expected one group"
        return
    name, group = next(iter(groups.items()))
    where = f"config_groups.{brief(name)}"
    if isinstance(group, Mapping) and group.get("format") == FORMAT:
        group = {key: value for key, value in group.items() if key != "format"}
    yield from _unequal(group, GROUP, f"{where}.")


def _unequal(found: Any, expected: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(found, Mapping):
        yield f"{where.removesuffix('.')} is {brief(found)}, expected an object"
        return
    for key, value in expected.items():
        own = found.get(key)
        if isinstance(value, Mapping):
            yield from _unequal(own, value, f"{where}{key}.")
        # Types must match too: 1 is not true, and 8.0 is not 8.
        elif type(own) is not type(value) or own != value:
            yield f"{where}{key} is {brief(own)}, expected {value!r}"
    for key, value in found.items():
        if key not in {*expected, *HARMLESS} and value not in (None, False, [], {}):
            yield f"{where}{brief(key)} is {brief(value)}, expected none"


def scale_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name → [rows, 1] of the scales that an int8 folder holds in addition."""
    return {
        f"{module}.{SCALE}": (spec.module_shape(index, module)[0], 1)
        for module, index in spec.module_names().items()
    }


def int8_weights(spec: ModelSpec) -> frozenset[str]:
    """Return the names of the tensors that an int8 folder stores as I8."""
    return frozenset(f"{module}.weight" for module in spec.module_names())


def check_weight(name: str, info: TensorInfo) -> None:
    """Raise CheckpointError unless the weight of a quantized linear is stored as int8."""
    if info.dtype != "I8":
        raise CheckpointError(
            f"{info.file}: tensor {name} is stored as {info.dtype}, expected I8 by "
            f"{CONFIG_KEY} in config.json; convert the base checkpoint again"
        )


def check_scale(name: str, info: TensorInfo) -> None:
    """Raise CheckpointError unless all scales of a linear are finite and positive."""
    scale = info.read().astype(np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise CheckpointError(
            f"{info.file}: tensor {name} must hold positive numbers; convert the base checkpoint "
            "again"
        )


def dequantize(weight: Array, scale: Array) -> NDArray[np.float32]:
    """Return the fp32 matrix [rows, columns] of int8 values and their scales [rows, 1]."""
    values: NDArray[np.float32] = weight.astype(np.float32)
    values *= scale.astype(np.float32)
    return values
