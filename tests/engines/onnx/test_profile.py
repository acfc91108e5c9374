"""What each node of a graph works on, for every family and every kind of matrix."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from converters.to_onnx import write_onnx
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.engines.onnx.profile import node_work
from sgate_serve.engines.work import (
    ATTENDING,
    EMBEDDING,
    HEAD,
    INDEX,
    NORMS,
    OTHER,
    PROJECTIONS,
    ROUNDING,
    UNITS,
    Work,
)
from sgate_serve.onnx_format.names import GRAPH_FILE
from sgate_serve.onnx_format.precision import precision_named, suited_to
from tests.converters.test_to_onnx_lowered import converted, row_col_gates, write_base
from tests.families.zoo import ON_ENGINES, Variant, build

PRODUCTS = ("FusedMatMul", "MatMul", "MatMulNBits", "MatMulIntegerToFloat", "Gemm")


def products(path: Path, spec: ModelSpec) -> Counter[Work]:
    """Count the matrix products of a graph by what they work on."""
    works = node_work(path, spec)
    graph = ir.load(path).graph
    return Counter(works[f"{node.name}"] for node in graph if node.op_type in PRODUCTS)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("variant", ON_ENGINES, ids=lambda variant: variant.name)
def test_nodes_work_on_the_tensors_that_they_read(
    tmp_path: Path, variant: Variant, precision: str
) -> None:
    if variant.name == "longrope":
        pytest.skip("the graph has no rope of this kind")
    build(variant, seed=0).save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    spec = base.spec
    held = suited_to(precision_named(precision, is_encoder=spec.is_encoder), {"amx_int8"})
    write_onnx(base, tmp_path / "graph", held)
    works = node_work(tmp_path / "graph" / GRAPH_FILE, spec)
    found = products(tmp_path / "graph" / GRAPH_FILE, spec)
    for layer, shape in enumerate(spec.layers):
        # Query, key and value are one product, and so are gate and up. In a recurrent layer so are
        # the shares of a state that are renewed and kept.
        assert found[Work(PROJECTIONS, layer)] == 2 + shape.is_recurrent
        # A mixture has a router, and perhaps a gate of its shared expert, and adds up experts.
        choices = sum(len(axes) == 2 for axes in spec.router_tensors(layer).values()) + 1
        assert found[Work(UNITS, layer)] == (
            2 * len(shape.expert_spans) + choices if shape.experts else 2
        )
        assert Work(ATTENDING, layer) in works.values() and Work(NORMS, layer) in works.values()
    assert {work.kind for work in found} <= {PROJECTIONS, UNITS, HEAD}
    kinds = {work.kind for work in works.values()}
    assert EMBEDDING in kinds and OTHER not in kinds and INDEX not in kinds
    assert (ROUNDING in kinds) == (precision == "int8")


def test_index_work_is_apart_from_its_product(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    converted(base, row_col_gates(base, 0.5))
    spec, graph = Checkpoint.open(tmp_path / "out").spec, tmp_path / "out" / "onnx" / GRAPH_FILE
    works = node_work(graph, spec).values()
    assert {work.layer for work in works if work.kind == INDEX} == set(range(len(spec.layers)))
    assert {work.kind for work in products(graph, spec)} == {PROJECTIONS, UNITS, HEAD}
