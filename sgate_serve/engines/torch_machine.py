"""What a machine can do with torch's kernels, on its CPUs or its GPU."""

import torch

from sgate_serve.engines.machine import (
    PRODUCT_OPERATIONS,
    PRODUCT_ROWS,
    PRODUCT_SIZE,
    STREAM_BYTES,
    MachineRates,
    fastest_seconds,
)

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gpu_rates(threads: int | None) -> MachineRates:
    """Measure the GPU, or the CPUs of a machine without one."""
    return _rates("cuda", threads) if torch.cuda.is_available() else cpu_rates(threads)


def cpu_rates(threads: int | None) -> MachineRates:
    """Measure the CPUs; `threads` None leaves torch's own number."""
    return _rates("cpu", threads)


def _rates(device: str, threads: int | None) -> MachineRates:
    if threads is not None:
        torch.set_num_threads(threads)
    stream = torch.ones(STREAM_BYTES // 4, device=device)
    target = torch.empty_like(stream)
    return MachineRates(
        read_bytes=STREAM_BYTES / fastest_seconds(lambda: stream.max().item()),
        copied_bytes=2 * STREAM_BYTES / fastest_seconds(lambda: _copy(stream, target)),
        products={name: _product_rate(kind, device) for name, kind in TYPES.items()},
        device=device,
    )


def _copy(stream: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(stream)
    _wait(stream)


def _product_rate(kind: torch.dtype, device: str) -> float:
    x = torch.randn(PRODUCT_ROWS, PRODUCT_SIZE, device=device).to(kind)
    weights = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device).to(kind)
    return PRODUCT_OPERATIONS / fastest_seconds(lambda: _wait(x @ weights))


def _wait(value: torch.Tensor) -> None:
    """Let a GPU finish; a CPU has."""
    if value.is_cuda:
        torch.cuda.synchronize()
