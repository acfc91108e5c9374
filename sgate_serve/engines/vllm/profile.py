"""A profiler over vLLM's modules, by the parts of their names: vLLM fuses and renames linears.

Hooks see modules only while vLLM runs them one by one, so the model must not be compiled.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.module_profiler import ModuleProfiler
from sgate_serve.engines.work import (
    ATTENDING,
    EMBEDDING,
    HEAD,
    INDEX,
    NORMS,
    OTHER,
    PROJECTIONS,
    SAMPLING,
    UNITS,
    Work,
)

# Parts of names that vLLM's models and ours give to blocks and to what is outside of them.
ATTENTION_PARTS = {"self_attn", "attn", "attention", "self_attention"}
MLP_PARTS = {"mlp", "fc1", "fc2", "feed_forward", "block_sparse_moe"}
HEAD_PARTS = {"lm_head", "head", "logits_processor"}
EMBEDDING_PARTS = {"embed_tokens", "embedding", "wte", "wpe", "embed_positions"}


@contextmanager
def profiled(load: Callable[[], Any], spec: ModelSpec) -> Iterator[tuple[Any, ModuleProfiler]]:
    """Load a timed engine that does not compile; attach hooks to its modules; yield both."""
    timed = load()
    runner = timed.model.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    named = ((module, _work(name, module)) for name, module in runner.model.named_modules())
    inside = [(module, work) for module, work in named if work is not None]
    whole = [(runner.model, Work(OTHER)), (runner.sampler, Work(SAMPLING))]
    yield timed, ModuleProfiler([*whole, *inside])


def _work(name: str, module: nn.Module) -> Work | None:
    """Return the work of a module; None where that of the module around it holds."""
    parts = name.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    if "norm" in parts[-1] or "Norm" in type(module).__name__:
        return Work(NORMS, layer)
    if HEAD_PARTS & {parts[0]}:
        return Work(HEAD)
    if EMBEDDING_PARTS & {parts[-1]}:
        return Work(EMBEDDING)
    if type(module).__name__.startswith("Indexed"):
        return Work(INDEX, layer)
    is_linear = type(module).__name__.endswith("Linear")
    if ATTENTION_PARTS & {*parts}:
        return Work(PROJECTIONS if is_linear else ATTENDING, layer)
    return Work(UNITS, layer) if MLP_PARTS & {*parts} else None
