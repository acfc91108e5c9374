"""Layers whose window is narrower than the one of the config, which the stock masks have."""

from typing import Any

import torch
from torch import nn

from sgate_serve.errors import CheckpointError


def narrow_window(attention: nn.Module, window: int) -> None:
    """Let the attention of a layer see the last `window` tokens alone, in place.

    Kernels with windows of their own read it off the module. Raises CheckpointError, once it is
    called, for masks of a form that cannot be narrowed, and for caches of a fixed size.
    """
    setattr(attention, "sliding_window", window)  # noqa: B010  # typed as a tensor

    def narrow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2):
            return None
        if not isinstance(mask, torch.Tensor) or getattr(past, "is_compileable", False):
            raise CheckpointError(
                "layers with windows of several sizes need eager attention and a cache that grows; "
                "leave attn_implementation and cache_implementation out"
            )
        return args, kwargs | {"attention_mask": _narrowed(mask, window)}

    attention.register_forward_pre_hook(narrow, with_kwargs=True)


def _narrowed(mask: torch.Tensor, window: int) -> torch.Tensor:
    """Return a mask [.., queries, keys], of numbers or flags, without keys out of the window.

    The last key is that of the last query.
    """
    num_queries, num_keys = mask.shape[-2:]
    queries = torch.arange(num_keys - num_queries, num_keys, device=mask.device)
    keys = torch.arange(num_keys, device=mask.device)
    is_outside = keys <= queries[:, None] - window
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(is_outside, hidden)
