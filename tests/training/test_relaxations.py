"""Relaxations, kurtosis and distillation against formulas worked out without torch."""

import math

import numpy as np
import pytest
import torch

from sgate_serve.architecture.spec import ModelSpec
from sgate_serve.training.distillation import Distillation, divergence
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.importance import magnitude_scores, wanda_scores
from sgate_serve.training.kurtosis import kurtosis_pull, pull_of
from sgate_serve.training.parts import Part, kept_tensors, trained_part
from sgate_serve.training.relaxations import RELAXATIONS, HardConcrete, Relaxation, StraightThrough
from sgate_serve.training.samples import Batch
from sgate_serve.training.train_options import COUPLED, ROW_COL
from tests.small_llama import dense_llama, random_tokens

IDS = torch.from_numpy(random_tokens(4 * 8).reshape(4, 8))
BATCHES: list[Batch] = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]


@pytest.mark.parametrize("logit", [-3.0, -1.0, 0.0, 2.0])
def test_the_chance_of_hard_concrete_gates_is_how_often_samples_are_open(logit: float) -> None:
    torch.manual_seed(0)
    samples = HardConcrete().sample(torch.full((20_000,), logit))
    expected = 1 / (1 + math.exp(-(logit - 2 / 3 * math.log(0.1 / 1.1))))
    chance = HardConcrete().open_chance(torch.tensor(logit)).item()
    assert chance == pytest.approx(expected, abs=1e-6)
    assert (samples > 0).float().mean().item() == pytest.approx(expected, abs=0.015)
    assert samples.min() >= 0 and samples.max() <= 1


@pytest.mark.parametrize("logit", [-1.0, -0.6, -0.5, 0.3])
def test_straight_through_samples_are_0_or_1_and_pass_the_relaxed_slope(logit: float) -> None:
    torch.manual_seed(0)
    logits = torch.full((20_000,), logit, requires_grad=True)
    samples = StraightThrough().sample(logits)
    torch.autograd.backward(samples.sum())
    assert set(samples.detach().round(decimals=5).tolist()) <= {0.0, 1.0}
    expected = 0.5 * math.erfc(-(math.tanh(logit) + 0.5) / 0.1 / math.sqrt(2))
    assert samples.mean().item() == pytest.approx(expected, abs=0.015)
    assert StraightThrough().open_chance(logits)[0].item() == pytest.approx(expected, abs=1e-6)
    # Closed or open, a gate feels the loss.
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), 1 - math.tanh(logit) ** 2, rtol=1e-5)


@pytest.mark.parametrize("logit", [-5.0, -1.0, 0.0, 1.5, 5.0])
def test_hard_concrete_reads_out_as_a_stretched_sigmoid(logit: float) -> None:
    expected = min(1.0, max(0.0, 1.2 / (1 + math.exp(-logit)) - 0.1))
    assert HardConcrete().read_out(torch.tensor(logit)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("relaxation", RELAXATIONS.values(), ids=list(RELAXATIONS))
def test_a_gate_reads_out_as_closed_up_to_its_threshold(relaxation: Relaxation) -> None:
    beside = torch.tensor([relaxation.closing - 1e-4, relaxation.closing + 1e-4])
    below, above = relaxation.read_out(beside).tolist()
    assert below == 0 and 0 < above <= 1
    assert relaxation.read_out(torch.tensor(relaxation.closing + relaxation.width)) == 1
    assert relaxation.read_out(torch.tensor(relaxation.flat[0])).item() == pytest.approx(
        1, abs=0.02
    )


def test_the_pull_is_the_papers_softmax_of_kurtosis() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 40))
    vectors[2, 0] = 30.0
    fourth = [np.mean((v - v.mean()) ** 4) / np.var(v) ** 2 for v in vectors]
    weights = [math.exp(-math.sqrt(k) / 100) for k in fourth]
    expected = [5 * weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(pull_of(vectors), expected, rtol=1e-6)
    assert pull_of(vectors).argmin() == 2
    assert pull_of(np.ones((3, 4))).tolist() == pytest.approx([1, 1, 1])


def test_a_pull_is_of_mean_inputs_times_weights() -> None:
    model = dense_llama()
    sites = GRANULARITIES[ROW_COL].sites(spec_of(model))
    pulls = kurtosis_pull(model, sites, BATCHES)
    assert pulls.keys() == {site.gate.key for site in sites}
    states = hidden_inputs(model, "model.layers.1.mlp.down_proj").mean(axis=(0, 1))
    matrix = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().numpy() * states
    rows, columns = pull_of(matrix.astype(np.float64)), pull_of(matrix.T.astype(np.float64))
    np.testing.assert_allclose(pulls["model.layers.1.mlp.down_proj.rows"], rows, rtol=1e-4)
    np.testing.assert_allclose(pulls["model.layers.1.mlp.down_proj.columns"], columns, rtol=1e-4)


@pytest.mark.parametrize("granularity", [COUPLED, ROW_COL])
def test_one_shot_scores_are_sums_over_what_a_gate_covers(granularity: str) -> None:
    model = dense_llama()
    sites = GRANULARITIES[granularity].sites(spec_of(model))
    wanda, magnitude = wanda_scores(model, sites, BATCHES), magnitude_scores(model, sites)
    for site in sites:
        gate = site.gate
        weight = model.get_parameter(f"{gate.module}.weight").detach().numpy()
        norms = np.sqrt((hidden_inputs(model, gate.module) ** 2).mean(axis=(0, 1)))
        axis = 0 if gate.side == "columns" else 1
        for scores, importance in ((wanda, abs(weight) * norms), (magnitude, weight**2)):
            expected = importance.sum(axis=axis).reshape(gate.num_gates, -1).sum(axis=1)
            np.testing.assert_allclose(scores[gate.key], expected, rtol=1e-4)


def test_padding_counts_for_no_score() -> None:
    model = dense_llama()
    sites = GRANULARITIES[COUPLED].sites(spec_of(model))
    padded = torch.cat([IDS, torch.zeros(4, 3, dtype=torch.int64)], dim=1)
    mask = (torch.arange(11) < 8).long().expand(4, 11)
    expected = wanda_scores(model, sites, [{"input_ids": IDS}])
    found = wanda_scores(model, sites, [{"input_ids": padded, "attention_mask": mask}])
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4)


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
    distillation = Distillation.of(model, 0.5, kept_tensors(spec, kinds))
    assert distillation is not None
    with torch.no_grad():
        wanted = distillation.teacher(input_ids=IDS).logits
    own = dict(model.named_parameters())
    shared = {name for name, p in distillation.teacher.named_parameters() if own[name] is p}
    assert "model.embed_tokens.weight" in shared
    assert ("model.layers.0.mlp.down_proj.weight" in shared) is shares_blocks
    # Adapters and trained weights do not reach the teacher.
    with trained_part(model, spec, Part(kinds[-1], 4, 0)), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        assert (model(input_ids=IDS).logits - wanted).abs().max() > 0.01
        assert torch.equal(distillation.teacher(input_ids=IDS).logits, wanted)


def spec_of(model: torch.nn.Module) -> ModelSpec:
    return ModelSpec.from_config(model.config.to_dict(), "test model")  # type: ignore[operator, union-attr]


@torch.no_grad()
def hidden_inputs(model: torch.nn.Module, name: str) -> np.ndarray:
    """Return the inputs [batch, seq, in] of one linear for IDS."""
    found: list[np.ndarray] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: found.append(inputs[0].numpy().copy())
    )
    model(input_ids=IDS)
    handle.remove()
    return found[0]
