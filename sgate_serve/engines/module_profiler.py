"""A profiler over torch modules: hooks time each module without those inside it.

The engines that run torch modules share it.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sgate_serve.engines.work import INDEX, Piece, Work
from sgate_serve.models.layers import IndexedLinear


class ModuleProfiler:
    """A `Profiler` (engines/work.py) over the modules of a model that runs eagerly."""

    def __init__(self, modules: Iterable[tuple[nn.Module, Work]]) -> None:
        self._pieces: list[Piece] = []
        self._open: list[Work] = []
        self._since = 0
        self._hooks: list[Any] = []
        for module, work in modules:
            self._time_module(module, work)

    def take(self) -> Sequence[Piece]:
        for hook in self._hooks:
            hook.remove()
        return self._pieces

    def _time_module(self, module: nn.Module, work: Work) -> None:
        if isinstance(module, IndexedLinear):
            self._time_product(module, work)
            work = Work(INDEX, work.layer)
        self._hooks += [
            module.register_forward_pre_hook(lambda *_: self._enter(work)),
            module.register_forward_hook(lambda *_: self._leave()),
        ]

    def _time_product(self, linear: IndexedLinear, work: Work) -> None:
        """Time the product of an indexed linear apart from its index work."""
        product = linear.product

        def timed(x: torch.Tensor) -> torch.Tensor:
            self._enter(work)
            y = product(x)
            self._leave()
            return y

        linear.product = timed  # type: ignore[method-assign]

    def _enter(self, work: Work) -> None:
        self._record()
        self._open.append(work)

    def _leave(self) -> None:
        self._record()
        self._open.pop()

    def _record(self) -> None:
        """End the piece of the innermost open module, and begin the next one."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter_ns()
        if self._open:
            self._pieces.append(Piece(self._open[-1], self._since, (now - self._since) / 1e9))
        self._since = now
