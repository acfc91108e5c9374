"""ONNX Runtime's profiler over a graph of ours: which tensors a node reads says what it works on.

Every node of a graph has a name, and ONNX Runtime reports times under it. Nodes that it makes
itself, while it optimizes a graph, count to the node that ran before them.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgate_serve.architecture.family import ATTENTION_ROLES, DECAY, MLP_ROLES, RENEWAL
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.onnx.runner import PROFILE
from sgate_serve.engines.work import (
    ATTENDING,
    EMBEDDING,
    HEAD,
    INDEX,
    OTHER,
    ROUNDING,
    Piece,
    Work,
    kind_of,
    module_of,
    work_by_module,
)
from sgate_serve.onnx_format.names import PRESENT_STATE_PREFIX

NODE, SUFFIX = "Node", "_kernel_time"
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
ATTENTION_OPS = (
    "GroupQueryAttention",
    "LinearAttention",
    "MultiHeadAttention",
    "RotaryEmbedding",
)
ROLES = {*ATTENTION_ROLES, *MLP_ROLES, RENEWAL, DECAY}
# The steps of rounding that read no constant.
ROUNDING_OPS = ("Abs", "Div")
# What converters/to_onnx names index rows of a product, and constants of integer products.
INDEX_ROWS, ROUNDING_CONSTANTS = ("inputs", "products"), "rows."


class OnnxProfiler:
    """A `Profiler` (engines/work.py) over one session that was opened to be profiled."""

    def __init__(self, session: Any, work: Mapping[str, Work]) -> None:
        self._session, self._work = session, work
        # The session's start is on the wall clock or a monotonic one, as the platform has it.
        start = session.get_profiling_start_time_ns()
        clocks = [time.time_ns(), time.monotonic_ns()]
        if hasattr(time, "CLOCK_MONOTONIC_RAW"):
            clocks.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))
        self._start_ns = time.perf_counter_ns() - min(abs(now - start) for now in clocks)

    def take(self) -> Sequence[Piece]:
        pieces, work = [], Work(OTHER)
        for event in node_events(self._session):
            work = self._work.get(event["name"].removesuffix(SUFFIX), work)
            start = self._start_ns + 1000 * event["ts"]
            pieces.append(Piece(work, start, event["dur"] / 1e6))
        return pieces


def node_events(session: Any) -> list[dict[str, Any]]:
    """Stop a session's profiler; return the event of each node that ran, in the order of starts."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = (event for event in events if event.get("cat") == NODE)
    ran = (event for event in nodes if event["name"].endswith(SUFFIX))
    return sorted(ran, key=lambda event: event["ts"])


@contextmanager
def profiled(load: Callable[[], Any], spec: ModelSpec) -> Iterator[tuple[Any, OnnxProfiler]]:
    """Load a timed model with ONNX Runtime's profiler on; yield both."""
    with tempfile.TemporaryDirectory() as folder:
        token = PROFILE.set(Path(folder) / "nodes")
        try:
            timed = load()
        finally:
            PROFILE.reset(token)
        runner = timed.model.runner
        yield timed, OnnxProfiler(runner.session, node_work(runner.path, spec))


def node_work(path: Path, spec: ModelSpec) -> Mapping[str, Work]:
    """Return the work of each node of the graph at `path`, by node name.

    A node that reads a tensor of the model works on it; one that reads none goes on with what its
    first input comes from, or rounds activations for an integer product. What comes from no
    tensor, such as the mask of a window or the number of tokens of a text, is for what uses it, in
    all layers.
    """
    import onnx_ir as ir  # slow to import, and not needed for serving

    graph, tensors = ir.load(path).graph, _TensorWork(spec)
    found: dict[Any, Work] = {}
    for node in graph:
        before = _before(node, found)
        if node.op_type in ATTENTION_OPS or _writes_state(node):
            found[node.name] = Work(ATTENDING, before.layer)
        else:
            found[node.name] = tensors.of_node(node) or before
    for node in reversed(graph):
        users = [found[user.name] for value in node.outputs for user, _ in value.uses()]
        if node.op_type in ROUNDING_OPS and ROUNDING in {work.kind for work in users}:
            found[node.name] = Work(ROUNDING)
        kinds = [work.kind for work in users if work.kind not in (OTHER, INDEX)]
        if found[node.name].kind == OTHER and kinds:
            found[node.name] = Work(kinds[0])
    return found


def _writes_state(node: Any) -> bool:
    return any(f"{value.name}".startswith(PRESENT_STATE_PREFIX) for value in node.outputs)


def _before(node: Any, found: Mapping[str, Work]) -> Work:
    producers = [value.producer() for value in node.inputs if value is not None]
    return next((found[made.name] for made in producers if made is not None), Work(OTHER))


class _TensorWork:
    """The work of tensors, by the names that converters/to_onnx gives them."""

    def __init__(self, spec: ModelSpec) -> None:
        self._by_module = work_by_module(spec)
        layer = re.escape(spec.family.layer).replace(r"\{\}", r"(\d+)")
        # The linears that read the same input are one product: `model.layers.0.gate_up.values`.
        self._product = re.compile(rf"{layer}(?:\.expert\.\d+)?\.([a-z_]+)\.(\w+)$")

    def of_node(self, node: Any) -> Work | None:
        """Return the work of a node that reads a tensor; else None."""
        constants = (value for value in node.inputs if value is not None and value.is_initializer())
        works = [self._of_tensor(value.name) for value in constants]
        work = next((work for work in works if work is not None), None)
        if work is not None and work.kind == EMBEDDING and node.op_type.startswith(PRODUCTS):
            return Work(HEAD)  # a tied head reads the table
        return work

    def _of_tensor(self, name: str) -> Work | None:
        if name.startswith(ROUNDING_CONSTANTS):
            return Work(ROUNDING)
        product = self._product.match(name)
        roles = product[2].split("_") if product else []
        if product and set(roles) <= ROLES:
            kind = INDEX if product[3] in INDEX_ROWS else kind_of(roles)
            return Work(kind, int(product[1]))
        return self._by_module.get(module_of(name))
