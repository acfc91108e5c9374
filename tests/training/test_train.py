"""Whole training runs on a tiny Llama: what they write, that they resume, what they refuse."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import GatesError, TrainingError
from sgate_serve.gates import DELTAS_FILE, Gates
from sgate_serve.plan.figures import TOLERANCE, Figures, removed
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.gates.relaxations import NOISE
from sgate_serve.training.granularities import GRANULARITIES
from sgate_serve.training.masks.removal_target import compile_gates
from sgate_serve.training.phases.trainer import PartlyFrozen
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.training.tasks.causal_lm import load_frozen, read_data
from sgate_serve.training.tasks.evaluate import causal_lm_metrics
from sgate_serve.training.tasks.training_data import Samples
from sgate_serve.training.train_options import COUPLED, ROW_COL
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.ranked_gates import keeps_of
from tests.small_llama import dense_llama, save
from tests.text_model import SENTENCES, write_tokenizer
from tests.training.masks.test_masking import fold

# Half of the weights are in MLPs, so that row and column gates reach every target here without
# closing a head, a sixth of this model.
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save(dense_llama(**SIZES), folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("data") / "text.jsonl", random.Random(0)
    texts = [". ".join(rng.choices(SENTENCES[:2], k=6)) for _ in range(40)]
    path.write_text("\n".join(json.dumps({"text": one}) for one in texts), encoding="utf-8")
    return path


@pytest.fixture
def options(base: Path, text: Path, tmp_path: Path) -> TrainOptions:
    return options_of(base, text, tmp_path / "gates")


@pytest.fixture(scope="module", params=[COUPLED, ROW_COL])
def lora_run(
    request: pytest.FixtureRequest,
    base: Path,
    text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainOptions:
    """The options of a complete run with the default recovery, for tests that only read it."""
    out = tmp_path_factory.mktemp("lora") / "gates"
    options = replace(options_of(base, text, out), gates=request.param)
    train(options)
    return options


def options_of(base: Path, text: Path, out: Path) -> TrainOptions:
    return TrainOptions(
        base=str(base),
        data=text,
        out=out,
        target=0.3,
        method="gates",
        steps=10,
        batch_size=4,
        seq_len=16,
        gate_learning_rate=0.2,  # five steps bring gates from fully open to fractions
        learning_rate=0.02,
        lora_rank=2,
        eval_blocks=8,
        save_steps=2,
        precision="fp32",
        no_control=True,
    )


def masked_with_deltas(base: Checkpoint, gates: Gates) -> torch.nn.Module:
    """Return base + deltas with the gates folded in, by hand."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    for name, info in gates.deltas.items():
        module = model.get_submodule(name.rpartition(".")[0])
        tensor = torch.nn.Parameter(torch.from_numpy(np.array(info.read())))
        setattr(module, name.rpartition(".")[2], tensor)
    fold(model, gates.masks(base.spec))
    return model


def loss_of(metrics: Mapping[str, Any], stage: str) -> float:
    value: float = metrics["scores"][stage]["loss"]["value"]
    return value


def check_promises(options: TrainOptions) -> dict[str, Any]:
    """Check what any run must hold, and return its metrics."""
    base, gates = Checkpoint.open(options.base), Gates.read(options.out)
    gates.check(base)
    assert gates.granularity == options.gates
    sites = GRANULARITIES[options.gates].sites(base.spec)
    assert gates.values.keys() == {site.gate.key for site in sites}
    assert gates.base_digest == base.digest
    values = {value for array in gates.values.values() for value in array.tolist()}
    assert (values == {0.0, 1.0}) == (options.gates == COUPLED)
    assert not {value for value in values if 0 < value < NOISE}
    spec = gates.spec(base.spec)
    plan = compile_gates(spec, gates)
    assert abs(removed(plan, spec) - options.weight_target) <= 0.01
    metrics: dict[str, Any] = json.loads((options.out / "metrics.json").read_text())
    assert metrics["removed"] == pytest.approx(removed(plan, spec))
    assert metrics["removed_overall"] == pytest.approx(Figures.of(plan, base.spec).overall)
    held_out = read_data(base, options).held_out
    recovered = causal_lm_metrics(masked_with_deltas(base, gates), held_out, 0)["loss"]
    assert loss_of(metrics, "recovered") == pytest.approx(recovered.value, abs=1e-4)
    dense = causal_lm_metrics(load_frozen(base), held_out, 0)["loss"]
    assert loss_of(metrics, "dense") == pytest.approx(dense.value, abs=1e-4)
    assert not run_dir_of(options.out).exists()
    return metrics


def test_lora_recovers_and_replaces_the_weights_of_the_blocks(lora_run: TrainOptions) -> None:
    metrics = check_promises(lora_run)
    assert loss_of(metrics, "recovered") < loss_of(metrics, "masked") - 0.05
    spec = Checkpoint.open(lora_run.base).spec
    weights = {
        f"{spec.family.linear(index, role)}.weight"
        for index in range(len(spec.layers))
        for role in spec.linear_shapes(index)
    }
    assert Gates.read(lora_run.out).deltas.keys() == weights


@pytest.mark.parametrize("gates", [COUPLED, ROW_COL])
def test_biases_recover_where_blocks_write(options: TrainOptions, gates: str) -> None:
    options = replace(options, recovery="bias", gates=gates)
    result = train(options)
    metrics = check_promises(options)
    assert metrics == json.loads(json.dumps(result.metrics))
    assert loss_of(metrics, "recovered") < loss_of(metrics, "masked") - 0.05
    writers = ("self_attn.o_proj", "mlp.down_proj")
    expected = {f"model.layers.{index}.{name}.bias" for index in (0, 1) for name in writers}
    found = Gates.read(options.out)
    if gates == COUPLED:
        masks = found.masks(Checkpoint.open(options.base).spec)
        expected |= {f"{name}.weight" for name, gate in masks.items() if not np.all(gate.columns)}
    assert found.deltas.keys() == expected


def test_trained_gates_convert_to_a_model_that_equals_them(lora_run: TrainOptions) -> None:
    out = lora_run.out.with_name("pruned")
    plan = convert(ConvertOptions(lora_run.base, out, lora_run.out))
    spec = Checkpoint.open(lora_run.base).spec
    assert removed(plan, spec) >= lora_run.weight_target - TOLERANCE
    result = verify(VerifyOptions(lora_run.base, str(out), lora_run.out, "torch"))
    assert result.passed, list(result.lines())


def test_trained_gates_have_smaller_sizes_with_the_same_weights(
    lora_run: TrainOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if lora_run.gates != COUPLED:
        with pytest.raises(GatesError, match="smaller sizes need gates that say which close next"):
            convert(ConvertOptions(lora_run.base, out, lora_run.out, sizes=(0.5,)))
        return
    (keep,) = keeps_of(Path(lora_run.base), lora_run.out, 0.5)
    convert(ConvertOptions(lora_run.base, out, lora_run.out, sizes=(keep,)))
    result = verify(VerifyOptions(lora_run.base, str(out), lora_run.out, "torch", keep=keep))
    assert result.passed and result.tensors_equal, list(result.lines())


def test_without_recovery_only_what_reads_the_units_is_refitted(options: TrainOptions) -> None:
    options = replace(options, recovery="none", no_control=False, target=0.5)
    losses = {}
    for no_refit in (True, False):
        own = replace(options, no_refit=no_refit, out=options.out.with_name(f"gates-{no_refit}"))
        train(own)
        metrics = check_promises(own)
        assert loss_of(metrics, "recovered") == loss_of(metrics, "masked")
        assert (own.out / DELTAS_FILE).exists() is not no_refit
        # The base is random, so its own loss is what to come back to, not a small one.
        losses[no_refit] = abs(loss_of(metrics, "masked") - loss_of(metrics, "dense"))
    assert losses[False] < losses[True]


def test_biases_that_the_base_has_are_all_trained(text: Path, options: TrainOptions) -> None:
    folder = options.out.with_name("base")
    save(dense_llama(**SIZES, attention_bias=True), folder)
    write_tokenizer(folder)
    biased = replace(options, base=str(folder), recovery="bias")
    train(biased)
    gates = Gates.read(biased.out)
    gates.check(Checkpoint.open(folder))
    assert "model.layers.0.self_attn.v_proj.bias" in gates.deltas
    assert "model.layers.0.mlp.up_proj.bias" not in gates.deltas


class PowerCutError(Exception):
    """Stands for a power cut in the middle of a run."""


@pytest.mark.parametrize("steps", [3, 8], ids=["gates", "recovery"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    lora_run: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    cut = replace(lora_run, out=tmp_path / "cut")
    count_steps(monkeypatch, limit=steps)
    with pytest.raises(PowerCutError):
        train(cut)
    monkeypatch.undo()
    assert not cut.out.exists()
    taken = count_steps(monkeypatch)
    train(replace(cut, resume=True))
    # Checkpoints are two steps apart, and five steps end a phase.
    assert len(taken) == 10 - (2 if steps == 3 else 7)
    straight, resumed = Gates.read(lora_run.out), Gates.read(cut.out)
    for key, values in straight.values.items():
        np.testing.assert_array_equal(resumed.values[key], values, err_msg=key)
    for name, info in straight.deltas.items():
        np.testing.assert_allclose(resumed.deltas[name].read(), info.read(), atol=1e-6)


def count_steps(monkeypatch: pytest.MonkeyPatch, limit: int = 1000) -> list[int]:
    """Note each training step in the list returned; cut the power after `limit` of them."""
    forward, taken = PartlyFrozen.forward, list[int]()

    def counted(self: PartlyFrozen, **inputs: torch.Tensor) -> Any:
        if len(taken) == limit:
            raise PowerCutError
        taken.append(1)
        return forward(self, **inputs)

    monkeypatch.setattr(PartlyFrozen, "forward", counted)
    return taken


def test_checkpoints_hold_no_frozen_weight(options: TrainOptions) -> None:
    model = dense_llama(**SIZES).requires_grad_(False)
    bias = model.get_parameter("model.norm.weight").requires_grad_(True)
    wrapped = PartlyFrozen(model)
    assert wrapped.state_dict().keys() == {"model.model.norm.weight"}
    wrapped.load_state_dict({"model.model.norm.weight": torch.zeros_like(bias)})
    assert not bias.detach().any()


def test_an_interrupted_run_is_neither_overwritten_nor_mixed_up(options: TrainOptions) -> None:
    work = run_dir_of(options.out)
    with pytest.raises(TrainingError, match=r"options\.json is missing, so there is no run to re"):
        train(replace(options, resume=True))
    work.mkdir()
    (work / "options.json").write_text(json.dumps(options.to_json()))
    with pytest.raises(TrainingError, match=r"gates\.work holds an interrupted run; continue it w"):
        train(options)
    changed = replace(options, resume=True, target=0.4, seed=1)
    with pytest.raises(TrainingError, match="started with a different target, seed; give the opt"):
        train(changed)


def test_held_out_data_may_be_given(options: TrainOptions, tmp_path: Path) -> None:
    held_out = tmp_path / "eval.txt"
    held_out.write_text("nothing of this is trained on. " * 10)
    base = Checkpoint.open(options.base)
    given = read_data(base, replace(options, eval_data=(held_out,)))
    split = read_data(base, options)
    assert len(given.train) > len(split.train)
    held, other = blocks_of(given.held_out), blocks_of(split.held_out)
    assert not (held[:, None] == other[None]).all(axis=2).any()
    limited = read_data(base, replace(options, eval_data=(held_out,), eval_blocks=2))
    spaced = held[:: len(held) // 2][:2]
    assert len(given.held_out) > 3
    np.testing.assert_array_equal(blocks_of(limited.held_out), spaced)


def test_the_end_of_a_text_without_blank_lines_is_held_out(
    options: TrainOptions, tmp_path: Path
) -> None:
    text = tmp_path / "one.txt"
    text.write_text("".join(f"line {number}\n" for number in range(900)))
    options = replace(options, eval_blocks=999)
    data = read_data(Checkpoint.open(options.base), replace(options, data=text))
    assert data.notes == ("the data is a single document, so its last tenth is held out",)
    assert 0.08 < len(data.held_out) / (len(data.train) + len(data.held_out)) < 0.14
    assert read_data(Checkpoint.open(options.base), options).notes == ()


def blocks_of(samples: Samples) -> np.ndarray:
    return np.stack([sample["input_ids"].numpy() for sample in samples.samples])


def test_a_given_mask_is_recovered_from_its_own_weights(
    lora_run: TrainOptions, tmp_path: Path
) -> None:
    given = Gates.read(lora_run.out)
    options = replace(
        lora_run,
        out=tmp_path / "again",
        mask=lora_run.out,
        target=None,
        method="fisher",
        gates=COUPLED,
    )
    metrics = train(options).metrics
    gates, before = Gates.read(options.out), json.loads((lora_run.out / "metrics.json").read_text())
    assert gates.method == given.method
    assert gates.granularity == given.granularity
    assert all(np.array_equal(gates.values[key], values) for key, values in given.values.items())
    ordered = given.values.keys() if gates.granularity == COUPLED else set()
    assert gates.order.keys() == given.order.keys() == ordered
    assert all(np.array_equal(gates.order[key], steps) for key, steps in given.order.items())
    assert metrics["removed"] == before["removed"]
    assert loss_of(metrics, "masked") == pytest.approx(loss_of(before, "recovered"), abs=1e-5)
    base = Checkpoint.open(options.base)
    held_out = read_data(base, options).held_out
    recovered = causal_lm_metrics(masked_with_deltas(base, gates), held_out, 0)["loss"]
    assert loss_of(metrics, "recovered") == pytest.approx(recovered.value, abs=1e-4)
    assert loss_of(metrics, "recovered") != loss_of(metrics, "masked")


def test_a_given_mask_without_weights_is_refitted(
    options: TrainOptions, base: Path, tmp_path: Path
) -> None:
    found = replace(options, method="fisher", recovery="none", no_refit=True, no_control=False)
    train(found)
    mask = tmp_path / "mask"
    replace(Gates.read(found.out), deltas={}).write(mask)
    by_hand = replace(found, out=tmp_path / "refitted", no_refit=False)
    train(by_hand)
    again = replace(by_hand, out=tmp_path / "again", mask=mask, target=None)
    train(again)
    wanted, deltas = (Gates.read(run.out).deltas for run in (by_hand, again))
    assert deltas.keys() == wanted.keys()
    assert deltas
    for name, info in wanted.items():
        np.testing.assert_array_equal(deltas[name].read(), info.read())
