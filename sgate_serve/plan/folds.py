"""Folds: constants that move into a bias because the part that produced them is removed.

One type for each kind of constant. `receiving_tensor` names the tensor that a fold is added to.
"""

from dataclasses import dataclass
from typing import ClassVar

from sgate_serve.architecture.family import DOWN, OUTPUT
from sgate_serve.architecture.spec import ModelSpec

Indices = tuple[int, ...]


@dataclass(frozen=True)
class UnitFold:
    """Constant MLP units of a layer, which move into the bias of the down projection."""

    role: ClassVar[str] = DOWN

    layer: int
    indices: Indices


@dataclass(frozen=True)
class ValueFold:
    """Constant value dimensions of a layer, which move into the bias of the output projection."""

    role: ClassVar[str] = OUTPUT

    layer: int
    indices: Indices


@dataclass(frozen=True)
class ColumnFold:
    """Columns of the linear `role` whose input is a norm's bias; they move into its own bias."""

    layer: int
    role: str
    indices: Indices


@dataclass(frozen=True)
class HeadUnitFold:
    """Constant units on top, which move into the bias of the outer linear."""

    indices: Indices


@dataclass(frozen=True)
class BlockFold:
    """The whole output of a block that writes only a constant, which moves into `target`."""

    layer: int
    block: str
    target: str


# Folds into the bias of `role`, a linear of the same layer.
LayerFold = UnitFold | ValueFold | ColumnFold
Fold = LayerFold | HeadUnitFold | BlockFold


def receiving_tensor(fold: Fold, spec: ModelSpec) -> str:
    """Return the name of the tensor that the constant is added to."""
    if isinstance(fold, BlockFold):
        return fold.target
    if isinstance(fold, HeadUnitFold):
        assert spec.head.dense is not None, "this model has no units on top"
        return f"{spec.head.dense.outer}.bias"
    return f"{spec.family.linear(fold.layer, fold.role)}.bias"
