"""A Llama whose linears compute y = ((x ∘ c) Wᵀ + b) ∘ r themselves, and its masks as files.

The oracle of the importers: nothing is folded here, and no code of ours reads the gates out. The
module tree is the FineGates authors', so its state dict is their layout.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.checkpoint.tensor_files import Array
from sgate_serve.gates import Gates
from tests.small_llama import reference_logits, save

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RandomGate(nn.Module):
    """Gates of which a share is closed, a share open and the rest in between."""

    noise: Tensor
    target_keep: Tensor

    def __init__(self, size: int, generator: np.random.Generator, closed: float) -> None:
        super().__init__()
        kind = generator.random(size)
        logits = generator.uniform(-0.5, 0.5, size)
        logits[kind < closed] = generator.uniform(-3, -0.6, size)[kind < closed]
        logits[kind > 0.7] = generator.uniform(0.6, 2, size)[kind > 0.7]
        self._gates_logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32)[None])
        self.register_buffer("noise", torch.zeros(1, size))
        self.register_buffer("target_keep", torch.tensor(0.75))

    def forward(self) -> Tensor:
        return (torch.tanh(self._gates_logits) + 0.5).clamp(0, 1)

    @property
    def logits(self) -> Tensor:
        return self._gates_logits.detach()[0].contiguous()

    @property
    def is_closed(self) -> NDArray[np.bool_]:
        return np.asarray(torch.tanh(self.logits).numpy() <= -0.5)

    @property
    def read_outs(self) -> NDArray[np.float32]:
        return np.asarray(self().detach()[0].numpy())


class GatedLinear(nn.Module):
    """One gated linear; with `add_bias` it has a bias even where the base has none."""

    def __init__(
        self, base: nn.Linear, generator: np.random.Generator, closed: float, add_bias: bool
    ) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        if add_bias:
            bias = generator.normal(0, 0.1, base.out_features)
            self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))
        self.gates_rows = RandomGate(base.out_features, generator, closed)
        self.gates_columns = RandomGate(base.in_features, generator, closed)

    def forward(self, hidden: Tensor) -> Tensor:
        product = (hidden * self.gates_columns()) @ self.weight.T
        biased = product if self.bias is None else product + self.bias
        gated: Tensor = biased * self.gates_rows()
        return gated


def gate_linears(
    model: PreTrainedModel, linears: tuple[str, ...], seed: int, add_biases: bool
) -> None:
    """Replace linears by gated ones, in place; the head of a tied model keeps the shared weight."""
    generator = np.random.default_rng(seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(linears):
            parent, _, last = name.rpartition(".")
            gated = GatedLinear(module, generator, 0.25, add_biases)
            setattr(model.get_submodule(parent), last, gated)


def gated_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return everything in the gated linears but the weights, by the authors' names."""
    return {
        f"{name}.{own}": tensor.contiguous()
        for name, module in model.named_modules()
        if isinstance(module, GatedLinear)
        for own, tensor in module.state_dict().items()
        if own != "weight"
    }


@dataclass(frozen=True)
class GatedLlama:
    """The base on disk, and the model that gates it at run time."""

    base: Checkpoint
    model: LlamaForCausalLM

    @classmethod
    def wrap(
        cls,
        model: LlamaForCausalLM,
        folder: Path,
        seed: int = 0,
        add_biases: bool = False,
        linears: tuple[str, ...] = LINEARS,
    ) -> "GatedLlama":
        """Save `model` as the base, then gate its linears of these names: a quarter is closed."""
        base = save(model, folder)
        gate_linears(model, linears, seed, add_biases)
        return cls(base, model)

    @property
    def linears(self) -> dict[str, GatedLinear]:
        modules = self.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, GatedLinear)}

    def gated(self, layer: int, name: str) -> GatedLinear:
        return self.linears[f"model.layers.{layer}.{name}"]

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return reference_logits(self.model, tokens)

    def finegates_tensors(self) -> dict[str, Tensor]:
        return gated_tensors(self.model)

    def save_finegates(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        self.model.config.save_pretrained(folder)
        save_file(self.finegates_tensors(), folder / "model.safetensors")
        return folder

    def peft_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, module in self.linears.items():
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.finegates_rows"] = module.gates_rows.logits
            tensors[f"{prefix}.finegates_columns"] = module.gates_columns.logits
            if module.bias is not None:
                tensors[f"{prefix}.base_layer.bias"] = module.bias.detach()
        return tensors

    def save_peft(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        config = {"peft_type": "FINEGATES", "target_modules": list(LINEARS)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(self.peft_tensors(), folder / "adapter_model.safetensors")
        return folder

    def save_sgate(self, folder: Path) -> Path:
        values, biases = {}, dict[str, Array]()
        for name, module in self.linears.items():
            values[f"{name}.rows"] = module.gates_rows.read_outs
            values[f"{name}.columns"] = module.gates_columns.read_outs
            if module.bias is not None:
                biases[f"{name}.bias"] = module.bias.detach().numpy()
        base = self.base
        gates = Gates("by hand", "llama", "row-col", base.fingerprint, values)
        replace(gates, base_digest=base.digest).write(folder, biases)
        return folder

    def save(self, kind: str, folder: Path) -> Path:
        return {
            "sgate": self.save_sgate,
            "finegates": self.save_finegates,
            "peft": self.save_peft,
        }[kind](folder)
