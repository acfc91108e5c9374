"""The device and the precision that a run computes in.

In bf16, linears multiply in bf16 by autocast. Trained tensors, their updates, norms and losses stay
fp32, and so does the result: bf16 copies of frozen weights exist only while a phase trains.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sgate_serve.training.train_options import BF16, FP32, TrainOptions

LINEARS = (nn.Linear, Conv1D)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(options: TrainOptions) -> str:
    """Return the precision asked for, or bf16 where it is fast here, else fp32."""
    return options.precision or (BF16 if multiplies_bf16() else FP32)


def multiplies_bf16() -> bool:
    """Say whether the device multiplies bf16 in hardware: a GPU, or a CPU by AVX-512 or AMX."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(flag) for flag in ("avx512_bf16", "amx_bf16"))


def autocast(options: TrainOptions) -> AbstractContextManager[None]:
    """Within the context, models run in the precision of the run; training does so by itself."""
    is_bf16 = precision_of(options) == BF16
    return torch.autocast(best_device().type, torch.bfloat16, enabled=is_bf16)


@contextmanager
def frozen_in_bf16(model: nn.Module) -> Iterator[None]:
    """Within the context, frozen matrices of linears are bf16, as autocast would make them.

    It would do so at every use: its cache is for trained tensors alone. Embeddings, also tied ones,
    stay fp32, and so does the residual stream that starts with them.
    """
    held = [
        (module, module.weight)
        for module in model.modules()
        if isinstance(module, LINEARS) and not module.weight.requires_grad
    ]
    try:
        for module, weight in held:
            module.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for module, weight in held:
            module.weight = weight
