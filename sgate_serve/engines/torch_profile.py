"""The profiler of the torch engine: transformers names modules as checkpoints do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.engines.module_profiler import ModuleProfiler
from sgate_serve.engines.work import OTHER, Work, work_by_module


@contextmanager
def profiled(load: Callable[[], Any], spec: ModelSpec) -> Iterator[tuple[Any, ModuleProfiler]]:
    """Load a timed model and attach hooks to its modules; yield both."""
    timed = load()
    model, works = timed.model.runner.model, work_by_module(spec)
    inside = [(module, works[name]) for name, module in model.named_modules() if name in works]
    yield timed, ModuleProfiler([(model, Work(OTHER)), *inside])
