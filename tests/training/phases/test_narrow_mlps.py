"""A model without its closed MLP units computes, and learns, what it does under the mask."""

import copy

import numpy as np
import pytest
import torch

from sgate_serve.architecture.family import DOWN
from sgate_serve.plan import Gate
from sgate_serve.training.masks.masking import masked_by
from sgate_serve.training.phases.dense import spec_of
from sgate_serve.training.phases.narrow_mlps import narrow_mlps
from tests.families.zoo import ZOO
from tests.training.masks.test_reconstruction import cacheless, columns_of, some_batches, some_masks
from tests.training.small_mixtures import MIXTURES, small_mixture, unstacked


@pytest.mark.parametrize("family", dict.fromkeys([*ZOO, *MIXTURES]))
def test_a_step_at_the_width_of_the_mask_is_the_step_under_the_mask(family: str) -> None:
    masked = cacheless(family) if family in ZOO else unstacked(small_mixture(family))[0]
    # Sums in another order differ by rounding, which norms over small states enlarge.
    masked = masked.double()
    spec = spec_of(masked)
    first, last = spec.parts(0, DOWN)[0].module, spec.parts(len(spec.layers) - 1, DOWN)[-1].module
    masks = dict(some_masks(spec))
    # Rows as well, open gates that scale, and a layer that loses all units.
    masks[first] = Gate(columns=np.zeros(spec.module_shape(0, first)[1], np.float32))
    masks[last] = Gate(columns=columns_of(masks[last]) * 0.5)
    narrow = copy.deepcopy(masked)
    shapes = {name: tensor.shape for name, tensor in narrow.named_parameters()}

    with masked_by(masked, masks):
        expected = step(masked, some_batches(spec)[0])
    with narrow_mlps(narrow, spec, masks) as rest, masked_by(narrow, rest):
        assert len(columns_of(rest[first])) == 1
        assert narrow.num_parameters() < masked.num_parameters()
        found = step(narrow, some_batches(spec)[0])

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert {name: tensor.shape for name, tensor in narrow.named_parameters()} == shapes
    for name, tensor in masked.named_parameters():
        torch.testing.assert_close(narrow.get_parameter(name), tensor, rtol=1e-4, atol=1e-5)
    with masked_by(narrow, masks), masked_by(masked, masks), torch.no_grad():
        outputs = [model(**some_batches(spec)[1]).logits for model in (narrow, masked)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Take a step of gradient descent on all parameters; return the outputs before it."""
    model.requires_grad_(True)
    logits: torch.Tensor = model(**batch).logits
    loss = logits.float().log_softmax(-1)[..., 0].sum()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(0.01 * gradient)
    return logits.detach()
