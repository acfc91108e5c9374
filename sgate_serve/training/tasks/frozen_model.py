"""What every model of a run goes through once transformers has loaded it."""

from typing import Any

from torch import nn

from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.models.experts import unstack
from sgate_serve.training.precision import best_device

# Fields of the config that training turns off for itself; the second adds the routers' own loss to
# that of the model.
TURNED_OFF = ("use_cache", "output_router_logits")


def frozen_model(model: Any, base: Checkpoint) -> nn.Module:
    """Freeze a model of `base`, on the GPU if there is one.

    Its modules get the names that files have, also where its class stacks the experts of a mixture.
    """
    for name in TURNED_OFF:
        if hasattr(model.config, name) or name == "use_cache":
            setattr(model.config, name, False)
    unstack(model, base.spec)
    frozen: nn.Module = model.requires_grad_(False).to(best_device())
    return frozen
