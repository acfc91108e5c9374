"""The Plan, the one record of what was removed, and its consequences for each linear."""

from sgate_serve.plan.plan import (
    AXES,
    PLAN_FILE,
    PLAN_FORMAT,
    PLAN_VERSION,
    Fold,
    Gate,
    Indices,
    LayerPlan,
    Lowering,
    Masks,
    Merge,
    Plan,
    Removal,
    Revival,
    Target,
    head_dims,
)

__all__ = [
    "AXES",
    "PLAN_FILE",
    "PLAN_FORMAT",
    "PLAN_VERSION",
    "Fold",
    "Gate",
    "Indices",
    "LayerPlan",
    "Lowering",
    "Masks",
    "Merge",
    "Plan",
    "Removal",
    "Revival",
    "Target",
    "head_dims",
]
