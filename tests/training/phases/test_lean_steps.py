"""Leaner steps compute what plain ones do, and leave the model as it was."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.phases import head_loss
from sgate_serve.training.phases.distillation import Distillation
from sgate_serve.training.phases.head_loss import has_plain_head, loss_without_logits
from sgate_serve.training.phases.lean_steps import lean_steps
from sgate_serve.training.phases.recovery import recover
from sgate_serve.training.phases.trainer import Phase, log_of
from sgate_serve.training.phases.tuning import Tuning, tuned
from sgate_serve.training.tasks.training_data import Samples, TrainingData
from sgate_serve.training.train_options import LORA
from tests.families.zoo import ZOO, build
from tests.small_llama import dense_llama, random_tokens

CAUSAL = ("llama", "gpt2", "phi3", "qwen3", "mistral")


def spec_of(model: Any) -> ModelSpec:
    return ModelSpec.from_config(model.config.to_dict(), "test model")


def phase_of(folder: Path, *, bf16: bool) -> Phase:
    return Phase(folder, 4, 2, 0.01, "constant", 0, 100, 0, bf16=bf16)


def gradients(model: nn.Module, context: AbstractContextManager[None]) -> dict[str, Tensor]:
    """Return the loss and the gradients of all trained tensors, some labels left out."""
    ids = torch.from_numpy(random_tokens(32).reshape(2, 16))
    labels = ids.clone()
    labels[1, 9:] = -100
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with context:
        loss = model(input_ids=ids, labels=labels).loss
        found = torch.autograd.grad(loss, list(trained.values()))
    return {"loss": loss.detach(), **dict(zip(trained, found, strict=True))}


def with_moved_lora(model: nn.Module) -> None:
    """Move LoRA's second factors from 0, so that every gradient is of use."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter.data, std=0.1)


@pytest.mark.parametrize("family", CAUSAL)
def test_lean_steps_have_the_loss_and_gradients_of_plain_ones(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "CPU_ROWS", 5)
    model = build(ZOO[family][0], seed=0).eval()
    spec = spec_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with tuned(model, spec, Tuning(LORA, 3, seed=0)):
        with_moved_lora(model)
        assert has_plain_head(model, spec)
        plain = gradients(model, nullcontext())
        lean = gradients(model, lean_steps(model, spec, phase_of(tmp_path, bf16=False)))
        assert plain.keys() == lean.keys()
        for name, value in plain.items():
            torch.testing.assert_close(lean[name], value, rtol=1e-4, atol=1e-6, msg=name)
        again = gradients(model, nullcontext())
        assert all(torch.equal(again[name], value) for name, value in plain.items())
    assert model.state_dict().keys() == before.keys()


def test_in_bf16_frozen_weights_are_cast_once_and_come_back(tmp_path: Path) -> None:
    model = dense_llama().eval()
    spec = spec_of(model)
    weights = dict(model.named_parameters())
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with tuned(model, spec, Tuning(LORA, 3, seed=0)):
        with_moved_lora(model)
        with torch.autocast("cpu", torch.bfloat16):
            plain = gradients(model, nullcontext())
            with lean_steps(model, spec, phase_of(tmp_path, bf16=True)):
                up = model.get_submodule("model.layers.0.mlp.up_proj.base_layer")
                assert up.get_parameter("weight").dtype == torch.bfloat16
                assert weights["model.embed_tokens.weight"].dtype == torch.float32
                lean = gradients(model, nullcontext())
        for name, value in plain.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(lean[name], value, rtol=0, atol=0.05 * scale, msg=name)
        for parameter in model.parameters():
            assert parameter.dtype == torch.float32
        for name, value in before.items():
            assert torch.equal(weights[name], value)


def test_every_step_in_bf16_uses_the_weights_of_the_one_before(tmp_path: Path) -> None:
    block = torch.from_numpy(random_tokens(16))
    data = TrainingData(Samples([{"input_ids": block, "labels": block}] * 4), Samples([]))
    losses = {}
    for bf16 in (False, True):
        model, folder = dense_llama(), tmp_path / str(bf16)
        phase = replace(phase_of(folder, bf16=bf16), steps=20)
        # As around the training of gates.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            recover(model, spec_of(model), {}, Tuning(LORA, 3, seed=0), data, phase)
        losses[bf16] = [entry["loss"] for entry in log_of(folder)]
    assert losses[False][-1] < losses[False][0] / 10
    assert losses[True][-1] == pytest.approx(losses[False][-1], rel=0.3)


def test_distillation_keeps_the_logits(tmp_path: Path) -> None:
    model = dense_llama().requires_grad_(False)
    spec, phase = spec_of(model), phase_of(tmp_path, bf16=False)
    ids = torch.from_numpy(random_tokens(16).reshape(2, 8))
    with lean_steps(model, spec, phase):
        assert model(ids).logits.shape[-1] == spec.norm_size
    with lean_steps(model, spec, replace(phase, distillation=Distillation.of(model, 0.5))):
        assert model(ids).logits.shape[-1] == spec.vocab_size
    assert model(ids).logits.shape[-1] == spec.vocab_size


def test_other_heads_are_left_alone() -> None:
    capped = build(ZOO["gemma3_text"][0], seed=0).requires_grad_(False)
    assert spec_of(capped).logit_softcap is not None
    assert not has_plain_head(capped, spec_of(capped))
    model = dense_llama().requires_grad_(False)
    assert has_plain_head(model, spec_of(model))
    handle = model.get_submodule("lm_head").register_forward_hook(lambda *_: None)
    assert not has_plain_head(model, spec_of(model))
    handle.remove()
    model.get_submodule("lm_head").requires_grad_(True)
    assert not has_plain_head(model, spec_of(model))


def test_a_loss_function_of_ones_own_comes_back() -> None:
    model: Any = dense_llama().requires_grad_(False)
    model.loss_function = own = lambda **_: None
    with loss_without_logits(model, spec_of(model), torch.float32):
        assert model.loss_function is not own
    assert model.loss_function is own
