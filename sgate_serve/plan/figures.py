"""How much a plan removes, counted five ways, and the cost of dead weights that are kept.

*Naive* counts weights in closed rows or columns, *compiled* those that are provably dead,
*index-free* those that slicing alone removes, *removed* those that the plan takes out, and
*executed* those that an engine does not compute with, net of its padding. All are fractions of the
dense block weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sgate_serve.architecture.family import OUTPUT, QUERY
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Plan
from sgate_serve.plan.placement import pruned_spec
from sgate_serve.plan.targets import TARGETS

# Between a fraction of the block weights that was asked for and one that is accepted for it.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Figures:
    """Fractions of the block weights; `overall` refers to all parameters, `revived` is the cost."""

    naive: float
    compiled: float
    index_free: float
    removed: float
    executed: float
    overall: float
    revived: float

    @classmethod
    def of(cls, plan: Plan, dense: ModelSpec) -> "Figures":
        total = dense.num_gateable or 1
        small, sliced = pruned_spec(plan, dense), pruned_spec(_without_index_work(plan), dense)
        padding = sum(_padding(small, TARGETS[plan.target.engine].head_multiple))
        return cls(
            naive=plan.closed / total,
            compiled=plan.dead / total,
            index_free=_removed(sliced, dense),
            removed=_removed(small, dense),
            executed=1 - (small.num_gateable + padding) / total,
            overall=1 - small.num_parameters / dense.num_parameters,
            revived=sum(revived_weights(plan, dense)) / total,
        )

    def headline(self) -> dict[str, float]:
        """Return the two fractions that every report leads with."""
        return {"removed": self.removed, "removed_overall": self.overall}


def removed(plan: Plan, dense: ModelSpec) -> float:
    """Return the fraction of the gateable linear weights removed, at the plan's alignment."""
    return _removed(pruned_spec(plan, dense), dense)


def _removed(small: ModelSpec, dense: ModelSpec) -> float:
    total = dense.num_gateable
    return 1 - small.num_gateable / total if total else 0.0


def revived_weights(plan: Plan, dense: ModelSpec) -> tuple[int, ...]:
    """Count, for each layer, the weights of dead units that are kept only for their width."""
    sliced = pruned_spec(_without_index_work(plan), dense)
    bare = replace(sliced, layers=tuple(layer.without_revived().shape for layer in plan.layers))
    layers = range(len(plan.layers))
    return tuple(sliced.layer_weights(i) - bare.layer_weights(i) for i in layers)


def _without_index_work(plan: Plan) -> Plan:
    layers = tuple(replace(layer, lowerings=()) for layer in plan.layers)
    return replace(plan, layers=layers)


def _padding(spec: ModelSpec, multiple: int) -> Iterator[int]:
    """Yield, per layer, the number of zero weights that an engine adds to fill its head width."""
    for index, layer in enumerate(spec.layers):
        extra = -layer.head_dim % multiple
        if not layer.num_heads or not extra or layer.is_recurrent:
            continue
        heads = layer.num_heads + 2 * layer.num_kv_heads
        _, columns = spec.module_shape(index, spec.family.linear(index, QUERY))
        rows, _ = spec.module_shape(index, spec.family.linear(index, OUTPUT))
        yield extra * (heads * columns + layer.num_heads * rows)
