"""The second phase: LoRA or biases win back, under the final masks, what closing gates cost."""

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, set_seed
from transformers.pytorch_utils import Conv1D

from sgate_serve.family import DOWN, OUTPUT
from sgate_serve.plan import Masks
from sgate_serve.spec import ModelSpec
from sgate_serve.tensor_files import Array
from sgate_serve.training.documents import Blocks
from sgate_serve.training.masking import constant_sources, masked_linears
from sgate_serve.training.phases import BlockDataset, PartlyFrozen, Phase, run

LORA_ALPHA_PER_RANK = 2


@dataclass(frozen=True)
class BlockLinears:
    """Module names of the linears inside the blocks; `writers` write to the residual stream."""

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


def recover_with_lora(
    model: nn.Module, spec: ModelSpec, masks: Masks, blocks: Blocks, phase: Phase, *, rank: int
) -> dict[str, Array]:
    """Train LoRA on every linear of the blocks and merge it into `model`.

    Returns the replaced weights (fp32) by tensor name.
    """
    linears = BlockLinears.of(spec)
    set_seed(phase.seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA_PER_RANK * rank,
        target_modules=list(linears.names),
        task_type="CAUSAL_LM",
        fan_in_fan_out=spec.family.is_transposed,
    )
    adapted = get_peft_model(model, config)
    _train(model, masks, blocks, phase)
    merged = adapted.merge_and_unload(progressbar=False)
    return {f"{name}.weight": _array(merged, f"{name}.weight") for name in linears.names}


def recover_with_biases(
    model: nn.Module, spec: ModelSpec, masks: Masks, blocks: Blocks, phase: Phase
) -> dict[str, Array]:
    """Train the biases of the blocks; linears that write to the residual stream get one if absent.

    Returns the biases (fp32) by tensor name.
    """
    linears, trained = BlockLinears.of(spec), []
    for name in linears.names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear | Conv1D), f"{name} is {type(linear).__name__}"
        bias: nn.Parameter | None = linear.bias
        if bias is None and name in linears.writers:
            bias = nn.Parameter(torch.zeros(linear.out_features, device=linear.weight.device))
            linear.bias = bias
        if bias is not None:
            bias.requires_grad_(True)
            trained.append(f"{name}.bias")
    _train(model, masks, blocks, phase)
    return {name: _array(model, name) for name in trained}


def _train(model: nn.Module, masks: Masks, blocks: Blocks, phase: Phase) -> None:
    """Train whatever of `model` is not frozen; every gate is a constant."""
    device = next(model.parameters()).device
    trainer = Trainer(
        model=PartlyFrozen(model), args=phase.arguments(), train_dataset=BlockDataset(blocks)
    )
    with masked_linears(model, constant_sources(masks, device)):
        run(trainer)


def _array(model: nn.Module, name: str) -> Array:
    array: Array = model.get_parameter(name).detach().float().cpu().numpy()
    return array
