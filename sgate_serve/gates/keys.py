"""The keys of a gates file, and the part of a model that each of them closes.

A coupled key names a layer and folds into column gates of the linear that reads the units; any
other key names a linear and one of its sides.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sgate_serve.architecture.family import CAUSAL_LM, DOWN, OUTPUT
from sgate_serve.architecture.spec import ModelSpec

MLP_UNITS, HEADS, KV_GROUPS, EXPERTS = "mlp_units", "heads", "kv_groups", "experts"
ROWS, COLUMNS = "rows", "columns"

Side = Literal["rows", "columns"]


@dataclass(frozen=True)
class GateSite:
    """One place for a gate vector; each of its `num_gates` values covers `repeat` neighbours.

    The values multiply the rows (outputs) or columns (inputs) of linear `module` in layer `layer`.
    """

    key: str
    layer: int
    module: str
    side: Side
    num_gates: int
    repeat: int = 1

    @property
    def kind(self) -> str:
        """The last part of the key: mlp_units, experts, heads, kv_groups, rows or columns."""
        return self.key.rpartition(".")[2]


def coupled_sites(spec: ModelSpec) -> Iterator[GateSite]:
    """Yield the sites that shrink dense shapes when they close: MLP units, heads, KV groups.

    In a mixture these are whole experts, and the units of each.
    """
    for index, layer in enumerate(spec.layers):
        name = spec.family.layer_name(index)
        if layer.experts:
            yield from _expert_sites(spec, index)
        elif layer.mlp_units:
            down = spec.family.linear(index, DOWN)
            yield GateSite(f"{name}.{MLP_UNITS}", index, down, "columns", layer.mlp_units)
        if layer.num_heads:
            output, width = spec.family.linear(index, OUTPUT), layer.head_dim
            yield GateSite(f"{name}.{HEADS}", index, output, "columns", layer.num_heads, width)
            # The query heads of a KV head are adjacent, so a group is one run of columns.
            width *= layer.queries_per_kv
            groups = layer.num_kv_heads
            yield GateSite(f"{name}.{KV_GROUPS}", index, output, "columns", groups, width)


def _expert_sites(spec: ModelSpec, index: int) -> Iterator[GateSite]:
    name, router = spec.family.layer_name(index), spec.family.router_name(index)
    count = len(spec.layers[index].experts)
    yield GateSite(f"{name}.{EXPERTS}", index, router, "rows", count)
    for part in spec.parts(index, DOWN):
        expert = part.module.rpartition(".")[0]
        units = part.units.stop - part.units.start
        yield GateSite(f"{expert}.{MLP_UNITS}", index, part.module, "columns", units)


def linear_sites(spec: ModelSpec) -> Iterator[GateSite]:
    """Yield the two sites of every linear inside the blocks: its rows and its columns."""
    for module, index in spec.module_names().items():
        rows, columns = spec.module_shape(index, module)
        yield GateSite(f"{module}.{ROWS}", index, module, "rows", rows)
        yield GateSite(f"{module}.{COLUMNS}", index, module, "columns", columns)


def head_sites(spec: ModelSpec) -> Iterator[GateSite]:
    """Yield the two sites of a causal LM's head: other tools gate it, `sgate train` does not."""
    if spec.task == CAUSAL_LM:
        head, layer = spec.family.head, len(spec.layers)
        yield GateSite(f"{head}.{ROWS}", layer, head, "rows", spec.vocab_size)
        yield GateSite(f"{head}.{COLUMNS}", layer, head, "columns", spec.hidden_size)


def gate_sites(spec: ModelSpec) -> dict[str, GateSite]:
    """Return the sites of this model by every key that its gates file may hold."""
    sites = (*coupled_sites(spec), *linear_sites(spec), *head_sites(spec))
    return {site.key: site for site in sites}


def one_of_each_kind(sites: Iterable[GateSite]) -> list[str]:
    """Return a key of each kind; units of layers, of experts and of the shared one are three."""
    first: dict[str, str] = {}
    for site in sites:
        parts = (part for part in site.key.split(".") if not part.isdecimal())
        kind = site.kind if site.kind in (ROWS, COLUMNS) else ".".join(parts)
        first.setdefault(kind, site.key)
    return list(first.values())
