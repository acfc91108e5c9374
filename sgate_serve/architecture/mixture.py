"""Where a family keeps its mixtures of experts, and how their routers choose."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Branch:
    """Experts that read the stream beside an MLP, which is then the expert that all tokens use.

    Names are inside a layer, but for what `within` returns. The MLP reads the norm of its block,
    experts the norm `before`. What they give is normalized apart, by `after` and `after_shared`,
    and then added; the norm after the block is over the sum. The router reads the stream divided by
    its root mean square and by the root of its width, times `router_scale` [hidden]. The shares of
    the chosen experts are multiplied by `share_scale` [experts] last.
    """

    before: str
    after: str
    after_shared: str
    router_scale: str
    share_scale: str

    def within(self, layer: str) -> "Branch":
        """Return the whole names, in a layer of this name."""
        return Branch(**{part: f"{layer}.{name}" for part, name in vars(self).items()})

    @property
    def norms(self) -> tuple[str, str, str]:
        return self.before, self.after, self.after_shared


@dataclass(frozen=True)
class Mixture:
    """Where a family keeps its mixtures of experts, and how their routers choose.

    Names of modules are inside a layer, those of `linears` inside an expert; `expert` has a place
    for the number. `shared` is an expert that every token uses, times the sigmoid of `shared_gate`
    if there is one. A router scores all experts by a softmax and keeps the `top_k` largest;
    `normalizes` says whether these are then divided by their sum, always or as this field of the
    config says. With a `correction`, a score is a sigmoid, and those are kept that are largest once
    it is added.
    """

    router: str
    expert: str
    linears: Mapping[str, str]
    normalizes: bool | str
    # The config's field that switches mixtures on; families without it always have some.
    switch: str | None = None
    shared: str | None = None
    shared_gate: str | None = None
    # The experts read the stream beside the shared one, through norms of their own.
    branch: Branch | None = None
    # A tensor of a layer with a value for each expert.
    correction: str | None = None
    # Fewer make the stock router fail.
    least_experts: int = 1
    # The config's field for the width of an expert.
    units: str = "moe_intermediate_size"
    # Its field for how many times as wide the shared expert is, where it does not state the width.
    shared_multiple: str | None = None
    # Beginnings of module names in files, and in the classes of transformers.
    renames: Mapping[str, str] = field(default_factory=dict)
    has_biased_router: bool = False
    # Stock files have one tensor for each role and layer, as the class does, with its names. Those
    # of gate and up share one: their columns "alternate", and matrices are (in, out); or they are
    # "halves", the rows of the gate first, of (out, in).
    stacks: Literal["alternate", "halves"] | None = None
    # Stock files may have these stacks in 4 bits (MXFP4).
    is_packed: bool = False
    # Units are (up + 1) · gate · sigmoid(alpha · gate), both clamped, by fields of the config.
    has_clamped_units: bool = False
    # The stock block returns the shares next to its output.
    returns_shares: bool = False

    @property
    def is_stacked(self) -> bool:
        return self.stacks is not None
