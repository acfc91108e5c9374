"""Which parameters of the model a phase tunes: LoRA, biases, all weights, or the head alone.

Every phase also trains a classifier's head; none trains embeddings.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from converters.rules import closed_experts_of_masks
from sgate_serve.architecture.family import (
    CLASSIFICATION,
    DOWN,
    MLP_ROLES,
    OUTPUT,
    POSITIONS,
    TYPES,
    VOCAB,
)
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.plan import Masks
from sgate_serve.training.masks.prunable_sites import expert_sites
from sgate_serve.training.train_options import BIAS, FULL, HEAD, LORA, NONE

LORA_ALPHA_PER_RANK = 2
PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Tuning:
    """One of LORA, BIAS, FULL, HEAD or NONE, and the rank and the initialization seed of LoRA."""

    kind: str
    rank: int
    seed: int


@dataclass(frozen=True)
class BlockLinears:
    """Module names of the linears in the blocks; `writers` write to the residual stream."""

    names: tuple[str, ...]
    writers: tuple[str, ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> "BlockLinears":
        modules = spec.module_names()
        writers = (
            name
            for name, index in modules.items()
            if spec.modules(index)[name][0] in (OUTPUT, DOWN)
        )
        return cls(tuple(modules), tuple(writers))


def head_tensors(spec: ModelSpec) -> tuple[str, ...]:
    """Return the tensors of a classifier's head; other models have no trainable head."""
    return tuple(spec.head.tensors) if spec.task == CLASSIFICATION else ()


def embedding_tensors(spec: ModelSpec) -> frozenset[str]:
    """Return the embedding tables of tokens, positions and types, and an untied LM head."""
    tables = (VOCAB, POSITIONS, TYPES)
    return frozenset(name for name, axes in spec.axes_outside().items() if axes[0] in tables)


def untouched_tensors(spec: ModelSpec, kinds: Sequence[str]) -> frozenset[str]:
    """Return the tensors that do not change until the last of several tunings has ended.

    LoRA changes a weight only when it is merged, at its end. Reconstruction refits the linears that
    write to the residual stream.
    """
    *before, last = kinds
    if set(before) <= {NONE} and last in (LORA, HEAD, NONE):
        refitted = (f"{name}.{part}" for name in BlockLinears.of(spec).writers for part in PARTS)
        return frozenset(spec.tensor_shapes()).difference(head_tensors(spec), refitted)
    return embedding_tensors(spec)


def closed_linears(spec: ModelSpec, masks: Masks) -> frozenset[str]:
    """Return the linears of the experts that their router never chooses."""
    closed = closed_experts_of_masks(spec, masks)
    return frozenset(
        spec.family.expert_linear(site.gate.layer, int(expert), role)
        for site in expert_sites(spec)
        for expert in np.flatnonzero(closed.get(site.gate.module, ()))
        for role in MLP_ROLES
    )


@contextmanager
def tuned(
    model: nn.Module, spec: ModelSpec, tuning: Tuning, left_out: Container[str] = ()
) -> Iterator[tuple[str, ...]]:
    """Within the context, the tuning's parameters and the head of `model` are trainable.

    Everything else is frozen, also the linears that are `left_out`. Yields the names of the tensors
    that change; LoRA is merged into them at the end.
    """
    model.requires_grad_(False)
    head = head_tensors(spec)
    if tuning.kind == LORA:
        linears = [name for name in BlockLinears.of(spec).names if name not in left_out]
        set_seed(tuning.seed)
        config = LoraConfig(
            r=tuning.rank,
            lora_alpha=LORA_ALPHA_PER_RANK * tuning.rank,
            target_modules=linears,
            fan_in_fan_out=spec.family.is_transposed,
        )
        adapted = get_peft_model(model, config)
        _train(model, head)
        yield (*(f"{name}.weight" for name in linears), *head)
        adapted.merge_and_unload(progressbar=False)
    else:
        names = {BIAS: _biases, FULL: _all_but_embeddings}.get(tuning.kind, _nothing)(model, spec)
        names = tuple(name for name in names if name.rpartition(".")[0] not in left_out)
        names = tuple(dict.fromkeys([*names, *head]))
        _train(model, names)
        yield names
    model.requires_grad_(False)


def _train(model: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        model.get_parameter(name).requires_grad_(True)


def _nothing(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    return ()


def _biases(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    """Return the biases of the blocks, adding one to each residual writer that lacks it."""
    linears, names = BlockLinears.of(spec), []
    for name in linears.names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear | Conv1D), f"{name} is {type(linear).__name__}"
        if linear.bias is None and name in linears.writers:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        if linear.bias is not None:
            names.append(f"{name}.bias")
    return tuple(names)


def _all_but_embeddings(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    # What corrects a router's choice is no parameter, for nothing is differentiable in it, and
    # neither is what multiplies the stream after a layer.
    layers = range(len(spec.layers))
    buffers = {*map(spec.correction, layers), *map(spec.family.scale_name, layers)}
    left_out = {*embedding_tensors(spec), *buffers}
    return tuple(name for name in spec.tensor_shapes() if name not in left_out)
