"""Reconstruction: refits the linears that read a block's units to the units that stay.

Layer by layer, such a linear becomes the ridge regression of its outputs over all units on the
units that stay (OSSCAR, arXiv 2403.12983; with a bias, FLAP's, arXiv 2312.11983, is part of it).
Its inputs are those that the layers before it, refitted already, produce. It costs nothing later.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Masks
from sgate_serve.progress import counted
from sgate_serve.training.masks.importance import linear_matrix
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.tasks.training_data import Batch, TrainingData, on_device

# Tokens for each unit of the widest linear, so that moments are well determined.
TOKENS_PER_UNIT = 16
# The weight of the ridge towards the old weights, relative to the mean variance of an input.
RIDGE = 0.01


@torch.no_grad()
def reconstruct(
    model: nn.Module, spec: ModelSpec, masks: Masks, batches: Sequence[Batch]
) -> tuple[str, ...]:
    """Refit in place the linears with closed columns; return the names of the changed tensors.

    `model` must keep no cache (`use_cache`), as its layers run more than once.
    """
    if not any(any(_closed_linears(spec, masks, index)) for index in range(len(spec.layers))):
        return ()
    was_training = model.training
    model.eval()
    changed: list[str] = []
    streams = [_Stream.of(model, spec, batch) for batch in batches]
    with masked_by(model, masks):
        for index in counted(range(len(spec.layers)), "layer"):
            layer = model.get_submodule(spec.family.layer_name(index))
            for name in _closed_linears(spec, masks, index):
                linear = model.get_submodule(name)
                moments = _Moments.of(stream.inputs(layer, index, linear) for stream in streams)
                _refit(linear, moments, torch.from_numpy(masks[name].columns))
                changed += (f"{name}.{part}" for part, _ in linear.named_parameters())
            for stream in streams:
                stream.advance(layer, index)
    model.train(was_training)
    return tuple(changed)


def calibration_batches(spec: ModelSpec, data: TrainingData, size: int, seed: int) -> list[Batch]:
    """Return random batches of `size` samples with enough tokens for the widest linear."""
    widest = max(
        max(0 if layer.experts else layer.mlp_units, layer.num_heads * layer.head_dim)
        for layer in spec.layers
    )
    lengths = [len(sample["input_ids"]) for sample in data.train.samples]
    per_batch = size * sum(lengths) / len(lengths)
    return data.shuffled_batches(size, ceil(TOKENS_PER_UNIT * widest / per_batch), seed)


def ridge_regression(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """Return W' [out, kept], which minimizes E|W a - W' a_kept|² + λ|W_kept - W'|².

    `weight` is W [out, in] and `moments` E[a aᵀ] [in, in]; both are best in float64.
    """
    ridge = RIDGE * moments.diagonal()[kept].mean()
    among_kept = moments[kept][:, kept] + ridge * torch.eye(len(kept)).to(moments)
    wanted = weight @ moments[:, kept] + ridge * weight[:, kept]
    fitted: Tensor = torch.linalg.solve(among_kept, wanted, left=False)
    return fitted


@dataclass(frozen=True)
class _Moments:
    """The mean [in] and the second moments [in, in] of a linear's inputs, in float64."""

    mean: Tensor
    second: Tensor

    @classmethod
    def of(cls, inputs: Iterator[Tensor]) -> "_Moments":
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for values in inputs:
            count += len(values)
            total = total + values.double().sum(dim=0)
            # Not in bf16, in which layers may run.
            with torch.autocast(values.device.type, enabled=False):
                squares = squares + (values.T @ values).double()
        return cls(total / count, squares / count)


def _refit(linear: nn.Module, moments: _Moments, gates: Tensor) -> None:
    """Refit the weights of the open inputs; a bias takes over what the mean of the others gave."""
    weight, bias = linear_matrix(linear), dict(linear.named_parameters()).get("bias")
    kept = gates.nonzero().flatten().to(weight.device)
    second = moments.second
    if bias is not None:
        second = second - torch.outer(moments.mean, moments.mean)
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    fitted[:, kept] = ridge_regression(weight.double(), second, kept)
    if bias is not None:
        bias.add_((weight - fitted) @ moments.mean)
    # An open gate goes on to multiply its input.
    fitted[:, kept] /= gates.to(fitted)[kept]
    weight.copy_(fitted)


def _closed_linears(spec: ModelSpec, masks: Masks, index: int) -> Iterator[str]:
    """Yield the linears of a layer that have closed columns, in the order in which they run.

    Experts stay as they are: each sees some of the tokens only.
    """
    for name in spec.modules(index):
        gate = masks.get(name)
        if spec.expert_of(name) is not None or gate is None or gate.columns is None:
            continue
        if not gate.columns.all():
            yield name


class _Reached(Exception):  # noqa: N818
    """Ends a layer's forward at the linear whose inputs are wanted."""


@dataclass
class _Stream:
    """A batch on its way through the layers.

    `hidden` [batch, seq, hidden] is what the next layer reads, `arguments` what each layer is given
    besides, and `is_token` [batch, seq] tells tokens from padding.
    """

    hidden: Tensor
    arguments: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    is_token: Tensor

    @classmethod
    def of(cls, model: nn.Module, spec: ModelSpec, batch: Batch) -> "_Stream":
        """Run a batch through the model to see what each layer is given."""
        given = on_device(batch, next(model.parameters()).device)
        seen: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states")
            seen.append((hidden, args[1:], rest))

        handles = [
            model.get_submodule(spec.family.layer_name(index)).register_forward_pre_hook(
                record, with_kwargs=True
            )
            for index in range(len(spec.layers))
        ]
        stack: Any = model
        try:
            # Without the head, whose outputs would be the largest tensor by far.
            stack.base_model(**{name: t for name, t in given.items() if name != "labels"})
        finally:
            for handle in handles:
                handle.remove()
        mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
        return cls(seen[0][0], [(args, kwargs) for _, args, kwargs in seen], mask.bool())

    def inputs(self, layer: nn.Module, index: int, linear: nn.Module) -> Tensor:
        """Return the inputs [tokens, in] of a linear of this layer, before they are masked."""
        found: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0])
            raise _Reached

        handle = linear.register_forward_pre_hook(record, prepend=True)
        try:
            self._run(layer, index)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0][self.is_token].float()

    def advance(self, layer: nn.Module, index: int) -> None:
        self.hidden = self._run(layer, index)

    def _run(self, layer: nn.Module, index: int) -> Tensor:
        args, kwargs = self.arguments[index]
        output = layer(self.hidden, *args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden
