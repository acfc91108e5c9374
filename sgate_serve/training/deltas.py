"""The tensors that training changed, as the gates folder stores them: in the dtype of the base.

Training is in fp32. A conversion rounds to the dtype of the base in any case, so of a 16-bit base
the trained tensors are rounded before they are measured, and then stored without another loss. A
gates folder is thereby no larger than its base.
"""

from collections.abc import Iterable

import torch
from torch import nn

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import DTYPES, Array
from sgate_serve.errors import TrainingError

SIXTEEN_BITS = {"BF16": torch.bfloat16, "F16": torch.float16}


@torch.no_grad()
def round_to_base(model: nn.Module, base: Checkpoint, names: Iterable[str]) -> None:
    """Round trained tensors to the dtype that a 16-bit base stores them in; others stay fp32."""
    for name in names:
        parameter = model.get_parameter(name)
        parameter.copy_(parameter.to(dtype_of(base, name)))


def stored_array(model: nn.Module, base: Checkpoint, name: str) -> Array:
    """Return a trained tensor as the gates folder stores it; raise TrainingError for NaN."""
    tensor = model.get_parameter(name).detach().cpu()
    if not tensor.isfinite().all():
        raise TrainingError(f"training ended with NaN or infinity in {name}; lower --learning-rate")
    dtype = dtype_of(base, name)
    if dtype == torch.bfloat16:
        # numpy has no bf16 of its own to receive it.
        bits = tensor.to(dtype).contiguous().view(torch.int16).numpy()
        return bits.view(DTYPES["BF16"])
    array: Array = tensor.to(dtype).numpy()
    return array


def dtype_of(base: Checkpoint, name: str) -> torch.dtype:
    """Return the dtype of a stored delta; biases that the base lacks are fp32, and few."""
    info = base.tensors.get(name)
    return torch.float32 if info is None else SIXTEEN_BITS.get(info.dtype, torch.float32)
