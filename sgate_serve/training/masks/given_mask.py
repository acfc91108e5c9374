"""A mask that the user gives: its gates, and the weights that were trained together with them."""

import numpy as np
import torch
from torch import nn

from converters.importers import read_gates
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.training.masks.prunable_sites import expert_sites
from sgate_serve.training.train_options import COUPLED, TrainOptions


def read_mask(base: Checkpoint, options: TrainOptions) -> Gates:
    """Return the gates at `options.mask`, of any kind that `sgate convert --gates` takes.

    Raises GatesError if they are malformed or of another base, and TrainingError if they close
    nothing or reach beyond the blocks.
    """
    assert options.mask is not None
    gates = read_gates(options.mask, base)
    if all(values.all() for values in gates.values.values()):
        raise TrainingError(f"--mask {options.mask}: every gate is open; nothing is pruned")
    routers = {site.gate.module for site in expert_sites(base.spec)}
    beyond = sorted({*gates.masks(base.spec)} - {*base.spec.module_names()} - routers)
    if beyond:
        raise TrainingError(
            f"--mask {options.mask}: {beyond[0]} has gates, but only linears of the blocks are "
            "recovered; convert these gates as they are"
        )
    return gates


def is_to_refit(gates: Gates, options: TrainOptions) -> bool:
    """Say whether what reads the units of a given mask is refitted; weights of its own stay."""
    return gates.granularity == COUPLED and not gates.deltas and not options.no_refit


@torch.no_grad()
def load_deltas(model: nn.Module, gates: Gates) -> tuple[str, ...]:
    """Load the weights of the gates into `model`, with biases that it lacks; return their names."""
    for name, info in gates.deltas.items():
        values = torch.from_numpy(info.read().astype(np.float32))
        owner, _, part = name.rpartition(".")
        module = model.get_submodule(owner)
        if getattr(module, part) is None:
            setattr(module, part, nn.Parameter(values, requires_grad=False))
        else:
            model.get_parameter(name).copy_(values)
    return tuple(gates.deltas)
