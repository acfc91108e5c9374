"""Whether what pruning added to a model fits it: biases, and modules with index vectors."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sgate_serve.errors import CheckpointError

if TYPE_CHECKING:
    from sgate_serve.architecture.spec import ModelSpec


def check_pruned(spec: "ModelSpec", source: str) -> None:
    """Raise CheckpointError for a bias or index vectors of a linear that the model lacks."""
    unknown = sorted(spec.extra_biases - {*spec.module_names(), spec.family.head})
    if unknown:
        raise CheckpointError(
            f"{source}: sgate.extra_biases names {unknown[0]!r:.80}, which is not a linear of "
            "this model; convert the base checkpoint again"
        )
    whole = replace(spec, lowered={})
    names = whole.module_names()
    for name, lowered in spec.lowered.items():
        if name not in names:
            raise CheckpointError(
                f"{source}: sgate.lowered names {name!r:.80}, which is not a linear of this "
                "model; convert the base checkpoint again"
            )
        rows, columns = whole.module_shape(names[name], name)
        if (lowered.rows or 1) > rows or (lowered.columns or 1) > columns:
            raise CheckpointError(
                f"{source}: sgate.lowered: {name} stores {lowered.rows} × {lowered.columns} "
                f"of {rows} × {columns}; convert the base checkpoint again"
            )
