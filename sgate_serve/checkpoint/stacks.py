"""Experts that stock files stack: one tensor for each role of a layer, as in GPT-OSS.

Elsewhere each expert has tensors of its own, (out, in); here is the way from one to the other. In
the files gate and up alternate in the last axis of `gate_up_proj`, and matrices are (in, out):
[experts, hidden, 2 · units] and [experts, units, hidden], biases [experts, …]. Folders of
`model_type: sgate` hold the experts one by one.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgate_serve.architecture.family import DOWN, GATE, UP, Family
from sgate_serve.checkpoint.mxfp4 import PackedStack
from sgate_serve.checkpoint.tensor_files import Array, TensorInfo
from sgate_serve.errors import CheckpointError

# The names of the class, for both: [experts, in, out].
GATE_UP_STACK, DOWN_STACK = "gate_up_proj", "down_proj"
WEIGHT, BIAS = "weight", "bias"
EXPERT = re.compile(
    rf"(?P<stem>(?:.+\.)?experts\.)(?P<number>\d+)\.(?P<linear>\w+)\.(?P<kind>{WEIGHT}|{BIAS})"
)
STACKS: Mapping[str, str] = {GATE: GATE_UP_STACK, UP: GATE_UP_STACK, DOWN: DOWN_STACK}


@dataclass(frozen=True)
class Slot:
    """The place of an expert's tensor in a stack: its number, and which columns are its own."""

    stack: str
    expert: int
    columns: slice
    is_matrix: bool

    def of(self, stack: Any) -> Any:
        """Return the expert's tensor as a view: a matrix (out, in), or a bias."""
        own = stack[self.expert][..., self.columns]
        return own.T if self.is_matrix else own


def slot_of(name: str, family: Family) -> Slot | None:
    """Return where stock files have a tensor of the family; None if it is not in a stack."""
    mixture, match = family.mixture, EXPERT.fullmatch(name)
    if mixture is None or not mixture.is_stacked or match is None:
        return None
    role = {own: role for role, own in mixture.linears.items()}.get(match["linear"])
    if role is None:
        return None
    columns = {GATE: slice(0, None, 2), UP: slice(1, None, 2), DOWN: slice(None)}[role]
    is_matrix = match["kind"] == WEIGHT
    stack = f"{match['stem']}{STACKS[role]}{'' if is_matrix else f'_{BIAS}'}"
    return Slot(stack, int(match["number"]), columns, is_matrix)


def part_in_words(name: str, family: Family) -> str:
    """Return what of a stock folder's files a tensor of the family is."""
    slot = slot_of(name, family)
    return f"tensor {name}" if slot is None else f"expert {slot.expert} of tensor {slot.stack}"


def stack_shape(slot: Slot, shape: tuple[int, ...], num_experts: int) -> tuple[int, ...]:
    """Return the shape of the stack of tensors of this `shape`."""
    width = shape[0] * (slot.columns.step or 1)
    return (num_experts, *((shape[1],) if slot.is_matrix else ()), width)


@dataclass(frozen=True)
class StackedTensor(TensorInfo):
    """An expert's tensor, a part of a stack in the file, with the name that it would have alone.

    `start` and `end` are those of the stack.
    """

    slot: Slot
    stack: TensorInfo

    @property
    def num_bytes(self) -> int:
        return self.stack.num_bytes * math.prod(self.shape) // math.prod(self.stack.shape)

    @property
    def in_files(self) -> tuple[TensorInfo, ...]:
        return self.stack.in_files

    def read(self) -> Array:
        if isinstance(self.stack, PackedStack):
            return self.stack.part(self.slot.of)
        # Its values are far apart in the stack: once is enough.
        return np.ascontiguousarray(self.slot.of(self.stack.read()))


def unstacked(
    tensors: Mapping[str, TensorInfo], family: Family, model_type: object
) -> Mapping[str, TensorInfo]:
    """Return tensors of a stock folder with those of each expert instead of stacks.

    Raises CheckpointError for stacks of other shapes or quantized ones, and for experts that are
    stored one by one, which transformers would not load.
    """
    mixture = family.mixture
    if mixture is None or not mixture.is_stacked or model_type != family.name:
        return tensors
    found = dict[str, TensorInfo]()
    for name, info in tensors.items():
        if slot_of(name, family) is not None:
            raise CheckpointError(
                f"{info.file}: tensor {name} is of one expert, and transformers' class of family "
                f"{family.name} loads all of a layer from one tensor: save the model from "
                "transformers"
            )
        parts = dict(_parts(name, info, family))
        found |= parts or {name: info}
    return found


def _parts(name: str, info: TensorInfo, family: Family) -> Iterator[tuple[str, TensorInfo]]:
    """Yield name → tensor of each expert of a stack; nothing for any other tensor."""
    assert family.mixture is not None, "only such a family has experts"
    stem, _, own = name.rpartition(".experts.")
    kind = BIAS if own.endswith(f"_{BIAS}") else WEIGHT
    roles = [role for role, stack in STACKS.items() if stack == own.removesuffix(f"_{BIAS}")]
    if not roles:
        return
    _check_stack(name, info, kind == WEIGHT, len(roles))
    shape = (info.shape[-1] // len(roles), *info.shape[1:-1])
    for expert in range(info.shape[0]):
        for role in roles:
            part = f".experts.{expert}.{family.mixture.linears[role]}.{kind}"
            slot = slot_of(f"{stem}{part}", family)
            assert slot is not None, name
            file_name = f"{info.name.rpartition('.experts.')[0]}{part}"
            place = (file_name, info.file, info.dtype, shape, info.start, info.end)
            yield f"{stem}{part}", StackedTensor(*place, slot=slot, stack=info)


def _check_stack(name: str, info: TensorInfo, is_matrix: bool, num_roles: int) -> None:
    """Raise CheckpointError unless a stack has the axes that its name says."""
    axes = "experts, in, out" if is_matrix else "experts, out"
    if len(info.shape) != len(axes.split()) or 0 in info.shape or info.shape[-1] % num_roles:
        pairs = ", where gate and up alternate in the last" if num_roles > 1 else ""
        raise CheckpointError(
            f"{info.file}: tensor {name} has shape {list(info.shape)}, expected [{axes}]{pairs}; "
            "save the model from transformers"
        )
