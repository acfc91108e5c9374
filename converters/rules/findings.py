"""The interface of a rule: what it is given to look at, and the findings that it yields.

`converters.rules.compile` lists the rules; `converters.rules.fixpoint` applies their findings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from converters.rules.facts import Flags, ModelFacts
from converters.rules.layer_state import LayerAxis, LayerState, ModelAxis
from sgate_serve.plan import Merge


@dataclass(frozen=True)
class Finding:
    """A dead part of one layer: flags over `axis`, and the root cause in words.

    `constant` flags the part that leaves a constant, which moves into the bias of the linear that
    reads it. For each of `merges` the first index receives the weights of the others.
    """

    axis: LayerAxis
    dead: Flags
    cause: str
    constant: Flags | None = None
    merges: tuple[Merge, ...] = ()


@dataclass(frozen=True)
class ModelFinding:
    """A dead part of the model outside its layers, likewise."""

    axis: ModelAxis
    dead: Flags
    cause: str
    constant: Flags | None = None


@dataclass(frozen=True)
class Receiver:
    """The tensor that can receive a block's constant.

    `writer` is the layer and block whose output bias it is; None for an embedding or a norm.
    """

    tensor: str
    writer: tuple[int, str] | None = None


@dataclass(frozen=True)
class Move:
    """A block without units that writes a constant to `dims`, and its receiver."""

    layer: int
    block: str
    dims: Flags
    receiver: Receiver


@dataclass(frozen=True)
class LayerView:
    """The input of a layer rule; `unwritten` flags, by block, the dimensions not written before.

    `sharing` are all layers that read the same keys and values, if those are several.
    """

    facts: ModelFacts
    layer: LayerState
    unwritten: Mapping[str, Flags]
    sharing: Sequence[LayerState] = ()


@dataclass(frozen=True)
class ModelView:
    """The input of a model rule; `embedded` flags the dimensions that the embeddings write."""

    facts: ModelFacts
    layers: Sequence[LayerState]
    embedded: Flags


LayerRule = Callable[[LayerView], Iterator[Finding]]
ModelRule = Callable[[ModelView], Iterator[ModelFinding | Move]]
