"""Load a folder's tensors into the modules of this process: its shard, its pipeline stage.

vLLM passes (name, tensor) pairs in the order of the files. Norms and tables are copied to their
parameters at once; the tensors of a linear are collected until all are there and then loaded
together, since index vectors determine the meaning of its weights.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from sgate_serve.architecture.family import ATTENTION
from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.checkpoint.names import canonical_name
from sgate_serve.engines.vllm.branch import UnevenBranch
from sgate_serve.engines.vllm.config import ModelContext
from sgate_serve.engines.vllm.heads import SequenceHead, key_of
from sgate_serve.engines.vllm.layer import SCALE, Tensors
from sgate_serve.engines.vllm.mixture import UnevenMixture
from sgate_serve.engines.vllm.recurrence import UnevenRecurrence
from sgate_serve.errors import CheckpointError

Weights = Iterable[tuple[str, torch.Tensor]]
Destination = tuple[nn.Parameter, float]
# Module name → the module in this process, and the gain of its values.
Places = dict[str | None, tuple[Any, float]]


def load_weights(model: Any, context: ModelContext, weights: Weights) -> set[str]:
    """Load every tensor of the folder that this process needs; return its parameter names.

    Raises CheckpointError if a tensor that the config implies is missing.
    """
    spec = context.spec
    plain, linears = plain_parameters(model, context), dict(linear_loaders(model))
    wanted = tensors_of_linears(context)
    gathered: dict[str, dict[str, torch.Tensor]] = {module: {} for module in linears}
    missing = {*plain, *linears}
    for written, tensor in weights:
        name = canonical_name(written, spec.family)
        module, _, kind = name.rpartition(".")
        if name in plain:
            parameter, gain = plain[name]
            _load_plain(parameter, _scaled(tensor, gain, spec.family.norm_offset))
            missing.discard(name)
        elif module in gathered:
            gathered[module][kind] = tensor
            if gathered[module].keys() == wanted[module]:
                linears[module](module, gathered.pop(module))
                missing.discard(module)
    if missing:
        raise CheckpointError(
            f"{context.vllm_config.model_config.model}: {min(missing)} is missing; is a shard of "
            "the checkpoint lost?"
        )
    return {name for name, _ in model.named_parameters()}


def plain_parameters(model: Any, context: ModelContext) -> dict[str, Destination]:
    """Return name → (parameter, gain of its stored values) for everything but block linears."""
    spec, stack = context.spec, model.stack
    modules: Places = {
        spec.family.embedding: (stack.embedding, 1.0),
        spec.family.position_table: (getattr(stack, "positions", None), 1.0),
        spec.family.embedding_norm: (getattr(stack, "embedding_norm", None), 1.0),
        spec.family.final_norm: (getattr(stack, "final_norm", None), spec.norm_gain),
        _types_name(spec): (getattr(stack, "types", None), 1.0),
    }
    for layer in _layers(stack):
        modules |= _layer_norms(layer, context) | _choices(layer)
    head = getattr(model, "head", None)
    if isinstance(head, SequenceHead):
        names = (name.rpartition(".")[0] for name in spec.head.tensors)
        modules |= {name: (head.parts[key_of(name)], 1.0) for name in names}
    elif head is not None and not spec.tied_head:
        modules[spec.family.head] = (head, 1.0)
    found: dict[str, Destination] = {}
    for name, (module, gain) in modules.items():
        if name and module is not None:
            own = module.named_parameters(recurse=False)
            found |= {f"{name}.{kind}": (parameter, gain) for kind, parameter in own}
    for layer in _layers(stack):
        if (scale := spec.family.scale_name(layer.layer.index)) is not None:
            found[scale] = (layer.scale, 1.0)
        if (block := _recurrence(layer)) is not None:
            found |= {name: (own, 1.0) for name, own in block.stored_parameters().items()}
    if spec.tied_head and spec.family.head in spec.extra_biases and head is not None:
        found[f"{spec.family.head}.bias"] = (head.bias, 1.0)
    return found


def linear_loaders(model: Any) -> Iterator[tuple[str, Callable[[str, Tensors], None]]]:
    """Yield the name of every linear in this stage's blocks, and the function that loads it."""
    for layer in _layers(model.stack):
        for block in layer.blocks.values():
            yield from _block_loaders(block)


def _block_loaders(block: Any) -> Iterator[tuple[str, Callable[[str, Tensors], None]]]:
    if isinstance(block, UnevenMixture):
        yield from block.loaders()
        yield from () if block.shared is None else _block_loaders(block.shared)
        return
    yield from ((module, block.readers.load) for module in block.readers.stored_modules)
    yield block.writer.stored_module, block.writer.load


def tensors_of_linears(context: ModelContext) -> dict[str, set[str]]:
    """Return for every linear the last name components of its tensors in the folder."""
    scales = {SCALE} if context.vllm_config.quant_config is not None else set()
    found = {module: set(scales) for module in context.spec.module_names()}
    for name in context.spec.tensor_shapes():
        module, _, kind = name.rpartition(".")
        if module in found:
            found[module].add(kind)
    return found


def _layers(stack: Any) -> Iterator[Any]:
    return (layer for layer in stack.layers if hasattr(layer, "blocks"))


def _layer_norms(layer: Any, context: ModelContext) -> Places:
    spec, index = context.spec, layer.layer.index
    family, gain = spec.family, spec.norm_gain
    modules: Places = {
        family.norm_name(index, name): (norm, gain) for name, norm in layer.norms.items()
    }
    for name, norm in layer.post_norms.items():
        modules[f"{family.layer_name(index)}.{family.post_norms[name]}"] = (norm, gain)
    branches = (block for block in layer.blocks.values() if isinstance(block, UnevenBranch))
    modules |= {name: (norm, gain) for branch in branches for name, norm in branch.norms()}
    if ATTENTION in layer.blocks and _recurrence(layer) is None:
        attention = layer.blocks[ATTENTION]
        if (sinks := spec.sinks(index)) is not None:
            modules[sinks.rpartition(".")[0]] = (attention, 1.0)
        norms = (attention.query_norm, attention.key_norm)
        for name, norm in zip(family.head_norms, norms, strict=False):
            modules[f"{family.layer_name(index)}.{name}"] = (norm, 1.0)
    return modules


def _recurrence(layer: Any) -> UnevenRecurrence | None:
    return next(
        (each for each in layer.blocks.values() if isinstance(each, UnevenRecurrence)), None
    )


def _choices(layer: Any) -> Places:
    """Return what chooses and weighs the experts of a layer."""
    mixtures = (block for block in layer.blocks.values() if isinstance(block, UnevenMixture))
    return {name: (module, 1.0) for mixture in mixtures for name, module in mixture.choices()}


def _types_name(spec: ModelSpec) -> str | None:
    names = (name for name in spec.family.outside if "token_type" in name)
    return next(names, "").removesuffix(".weight") or None


def _scaled(tensor: torch.Tensor, gain: float, offset: float) -> torch.Tensor:
    """Return norm weights times the gain; Gemma stores them with 1 subtracted."""
    if gain == 1.0:
        return tensor
    wide = tensor.to(torch.float32)
    return (wide + offset) * gain - offset


def _load_plain(parameter: nn.Parameter, tensor: torch.Tensor) -> None:
    loader = getattr(parameter, "weight_loader", default_weight_loader)
    loader(parameter, tensor)
