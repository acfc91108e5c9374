"""The teacher, and its divergence from the student against a formula worked out with numpy."""

import numpy as np
import pytest
import torch

from sgate_serve.training.phases.distillation import Distillation, divergence
from sgate_serve.training.phases.tuning import Tuning, tuned, untouched_tensors
from tests.small_llama import dense_llama, random_tokens
from tests.training.masks.test_importance import spec_of

IDS = torch.from_numpy(random_tokens(4 * 8).reshape(4, 8))


def test_divergence_is_the_mean_kl_of_rows() -> None:
    wanted, given = np.random.default_rng(0).standard_normal((2, 2, 3, 5))
    rows = []
    for teacher, student in zip(wanted.reshape(-1, 5), given.reshape(-1, 5), strict=True):
        p, q = (np.exp(x) / np.exp(x).sum() for x in (teacher, student))
        rows.append(float((p * np.log(p / q)).sum()))
    found = divergence(torch.from_numpy(wanted), torch.from_numpy(given)).item()
    assert found == pytest.approx(np.mean(rows), rel=1e-5)
    assert divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [5.0]])).item() == 5.0


def test_the_teacher_is_the_model_before_training() -> None:
    model = dense_llama()
    distillation = Distillation.of(model, 0.25)
    assert distillation is not None and Distillation.of(model, 0.0) is None
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        model.get_parameter("model.norm.weight").mul_(1.5)
        logits = model(input_ids=IDS).logits
    own = torch.tensor(2.0)
    found = distillation.loss(own, logits, {"input_ids": IDS, "labels": IDS})
    expected = 0.75 * 2.0 + 0.25 * divergence(wanted, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert divergence(wanted, logits) > 0.001


@pytest.mark.parametrize(
    ("kinds", "shares_blocks"),
    [(("lora",), True), (("none", "lora"), True), (("lora", "lora"), False), (("full",), False)],
)
def test_the_teacher_shares_what_no_training_changes(
    kinds: tuple[str, ...], shares_blocks: bool
) -> None:
    model = dense_llama()
    spec = spec_of(model)
    distillation = Distillation.of(model, 0.5, untouched_tensors(spec, kinds))
    assert distillation is not None
    with torch.no_grad():
        wanted = distillation.teacher(input_ids=IDS).logits
    own = dict(model.named_parameters())
    shared = {name for name, p in distillation.teacher.named_parameters() if own[name] is p}
    assert "model.embed_tokens.weight" in shared
    assert ("model.layers.0.mlp.up_proj.weight" in shared) is shares_blocks
    assert "model.layers.0.mlp.down_proj.weight" not in shared
    # Adapters and trained weights do not reach the teacher.
    with tuned(model, spec, Tuning(kinds[-1], 4, 0)), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        assert (model(input_ids=IDS).logits - wanted).abs().max() > 0.01
        assert torch.equal(distillation.teacher(input_ids=IDS).logits, wanted)
