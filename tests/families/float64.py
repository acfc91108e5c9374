"""The oracle's arithmetic: any transformers model, computed entirely in float64, attention eager.

`model.double()` alone is not enough: transformers casts back to float32 inside RMSNorm, the eager
softmax and the rotary tables. Constants keep the values the model stores (rotary frequencies,
Gemma's embedding scale), so that a dense and a pruned model cannot differ by how they are made.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


class Float64Casts(TorchFunctionMode):
    """Turns every cast of a floating-point tensor to float32 into a cast to float64.

    Whole numbers still become float32: positions are exact, and rotary frequencies that a forward
    derives anew (longrope) keep the values that the stock model has.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operand = args[0] if args else kwargs.get("input")
        if not isinstance(operand, torch.Tensor) or not operand.is_floating_point():
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            return torch.Tensor.double(*args, **kwargs)
        widened = {name: _widened(value) for name, value in kwargs.items()}
        return func(*map(_widened, args), **widened)


def _widened(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


CASTS = Float64Casts()


def as_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Make every later call of `model`, or of its base model, compute in float64; in place.

    Works by hooks, which copies of the model keep, and needs to know none of its modules: replaced
    linears and norms of other classes run their own forward.
    """
    model.double().eval()
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = "eager"
        if hasattr(module, "reorder_and_upcast_attn"):
            # GPT-2's path for mixed precision, which raises in any dtype but float32.
            module.reorder_and_upcast_attn = False
        if isinstance(module, PreTrainedModel) and not hasattr(module, "computes_in_float64"):
            module.computes_in_float64 = True
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)
    return model


def _enter(module: torch.nn.Module, args: Any) -> None:
    CASTS.__enter__()  # type: ignore[no-untyped-call]


def _leave(module: torch.nn.Module, args: Any, output: Any) -> None:
    CASTS.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def outputs64(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return what `model`, made float64 in place, computes: logits, or hidden states and pooled."""
    with torch.no_grad():
        output = as_float64(model)(input_ids, attention_mask=attention_mask)
    names = [name for name in ("logits", "last_hidden_state", "pooler_output") if name in output]
    assert all(output[name].dtype == torch.float64 for name in names)
    return {name: output[name].numpy() for name in names}


def logits64(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> NDArray[np.float64]:
    """Return the logits, or a base model's last hidden states (batch, length, hidden)."""
    outputs = outputs64(model, input_ids, attention_mask)
    return outputs["logits" if "logits" in outputs else "last_hidden_state"]
