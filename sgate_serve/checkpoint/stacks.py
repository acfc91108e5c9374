"""Experts that files stack: one tensor for each role of a layer, as in transformers' classes.

Elsewhere each expert has tensors of its own, (out, in); here is the way from one to the other. In
most classes the rows of gate come before those of up, [experts, 2 · units, hidden], and down is
[experts, hidden, units]. In GPT-OSS both alternate and matrices are (in, out): [experts, hidden, 2
· units] and [experts, units, hidden], biases [experts, …]. Files have such stacks or single
experts; stock files of GPT-OSS and Gemma 4 (`Mixture.stacks`) have stacks alone. Folders of
`model_type: sgate` have none.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgate_serve.architecture.family import DOWN, GATE, UP, Family
from sgate_serve.architecture.sgate_config import SGATE_MODEL_TYPE
from sgate_serve.checkpoint.mxfp4 import PackedStack
from sgate_serve.checkpoint.tensor_files import Array, TensorInfo
from sgate_serve.errors import CheckpointError

WEIGHT, BIAS = "weight", "bias"
EXPERT = re.compile(
    rf"(?P<stem>(?:.+\.)?experts\.)(?P<number>\d+)\.(?P<linear>\w+)\.(?P<kind>{WEIGHT}|{BIAS})"
)
STACKS: Mapping[str, str] = {GATE: "gate_up_proj", UP: "gate_up_proj", DOWN: "down_proj"}
# Which of the two parts of a stack a role has.
HALVES: Mapping[str, int] = {GATE: 0, UP: 1}
# The order of `Mixture.stacks` in which they alternate.
ALTERNATE = "alternate"


@dataclass(frozen=True)
class Slot:
    """The place of an expert's tensor in a stack: its number, and which part is its own."""

    stack: str
    expert: int
    role: str
    is_matrix: bool
    # Gate and up alternate in the last axis, and matrices are (in, out).
    alternates: bool

    def of(self, stack: Any) -> Any:
        """Return the expert's tensor as a view: a matrix (out, in), or a bias."""
        own = stack[self.expert]
        if self.alternates and self.is_matrix:
            own = own.T
        if self.role == DOWN:
            return own
        half, units = HALVES[self.role], len(own) // 2
        return own[half::2] if self.alternates else own[half * units : (half + 1) * units]


def class_slot(name: str, family: Family) -> Slot | None:
    """Return where the class of the family has a tensor; None if it is not in a stack."""
    mixture, match = family.mixture, EXPERT.fullmatch(name)
    if mixture is None or match is None:
        return None
    role = {own: role for role, own in mixture.linears.items()}.get(match["linear"])
    if role is None:
        return None
    is_matrix = match["kind"] == WEIGHT
    stack = f"{match['stem']}{STACKS[role]}{'' if is_matrix else f'_{BIAS}'}"
    return Slot(stack, int(match["number"]), role, is_matrix, mixture.stacks == ALTERNATE)


def slot_of(name: str, family: Family) -> Slot | None:
    """Return where written stock files have a tensor of the family; None if not in a stack."""
    is_stacked = family.mixture is not None and family.mixture.is_stacked
    return class_slot(name, family) if is_stacked else None


def part_in_words(name: str, family: Family) -> str:
    """Return what of a stock folder's files a tensor of the family is."""
    slot = slot_of(name, family)
    return f"tensor {name}" if slot is None else f"expert {slot.expert} of tensor {slot.stack}"


def stack_shape(slot: Slot, shape: tuple[int, ...], num_experts: int) -> tuple[int, ...]:
    """Return the shape of the stack of tensors of this `shape`."""
    own = (shape[0] if slot.role == DOWN else 2 * shape[0], *shape[1:])
    return (num_experts, *(own[::-1] if slot.alternates else own))


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
        # Its values may be far apart in the stack: once is enough.
        return np.ascontiguousarray(self.slot.of(self.stack.read()))


def unstacked(
    tensors: Mapping[str, TensorInfo], family: Family, model_type: object
) -> Mapping[str, TensorInfo]:
    """Return tensors of a stock folder with those of each expert instead of stacks.

    Raises CheckpointError for stacks of other shapes or quantized ones, for experts that are stored
    twice, and for single ones where transformers would not load them.
    """
    if family.mixture is None or model_type == SGATE_MODEL_TYPE:
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
        if twice := tensors.keys() & parts:
            raise CheckpointError(
                f"{info.file}: tensor {name} holds all experts of its layer, and {min(twice)} one "
                "of them; keep one or the other"
            )
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
    alternates = family.mixture.stacks == ALTERNATE
    _check_stack(name, info, kind == WEIGHT, len(roles), alternates)
    shape = info.shape[:0:-1] if alternates else info.shape[1:]
    shape = (shape[0] // len(roles), *shape[1:])
    for expert in range(info.shape[0]):
        for role in roles:
            part = f".experts.{expert}.{family.mixture.linears[role]}.{kind}"
            slot = class_slot(f"{stem}{part}", family)
            assert slot is not None, name
            file_name = f"{info.name.rpartition('.experts.')[0]}{part}"
            place = (file_name, info.file, info.dtype, shape, info.start, info.end)
            yield f"{stem}{part}", StackedTensor(*place, slot=slot, stack=info)


def _check_stack(
    name: str, info: TensorInfo, is_matrix: bool, num_roles: int, alternates: bool
) -> None:
    """Raise CheckpointError unless a stack has the axes that its name says."""
    axes = ["experts", *(("in", "out") if alternates else ("out", "in"))]
    if not is_matrix:
        axes.remove("in")
    if len(info.shape) != len(axes) or 0 in info.shape or info.shape[axes.index("out")] % num_roles:
        pairs = f", out being gate {'and up by turns' if alternates else 'before up'}"
        raise CheckpointError(
            f"{info.file}: tensor {name} has shape {list(info.shape)}, expected "
            f"[{', '.join(axes)}]{pairs if num_roles > 1 else ''}; save the model from transformers"
        )
