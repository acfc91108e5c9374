"""Classifiers the whole way: data, a new head, every method and recovery, conversion, scores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from converters.convert import ConvertOptions, convert
from sgate_serve.checkpoint.reader import Checkpoint
from sgate_serve.errors import TrainingError
from sgate_serve.gates import Gates
from sgate_serve.plan.figures import TOLERANCE, removed
from sgate_serve.reports.evaluation import EvalOptions, evaluate
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.masks.removal_target import compile_gates
from sgate_serve.training.tasks.classification import pad_token
from sgate_serve.training.train_options import DENSE, FISHER, GATES, MAGNITUDE, RANDOM, WANDA
from sgate_serve.verify.verification import verify
from sgate_serve.verify.verify_options import VerifyOptions
from tests.families.zoo import ZOO, build
from tests.training.labelled_text import DENSE_STEPS, options_of, write_examples, write_model

STAGES = ("dense", "masked", "recovered")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a head."""
    return write_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "train.jsonl", 160)


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """A complete run with the defaults, for tests that only read it."""
    options = options_of(
        base, data, tmp_path_factory.mktemp("run") / "gates", dense_steps=DENSE_STEPS
    )
    train(options)
    return options


def metrics_of(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def accuracy(metrics: dict[str, Any], stage: str) -> float:
    value: float = metrics["scores"][stage]["accuracy"]["value"]
    return value


def check_base_config(base: Path, written: Path) -> None:
    """Nothing but the new head and the precision of the weights tells the configs apart."""
    before, after = (json.loads((f / "config.json").read_text()) for f in (base, written))
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed <= {"architectures", "id2label", "label2id", "problem_type", "pad_token_id"}
    assert after.get("use_cache") == before.get("use_cache")


def test_a_base_without_a_head_gets_one_and_is_written_beside_the_gates(
    trained: TrainOptions,
) -> None:
    metrics, base = metrics_of(trained.out), Checkpoint.open(trained.out / "base")
    assert accuracy(metrics, "dense") > 0.9
    assert accuracy(metrics, "recovered") > 0.9
    assert base.spec.num_labels == 2 and base.config["id2label"] == {"0": "cat", "1": "gate"}
    gates = Gates.read(trained.out)
    gates.check(base)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= gates.deltas.keys()
    assert (trained.out / "base" / "tokenizer.json").is_file()
    check_base_config(Path(trained.base), trained.out / "base")
    assert abs(removed(compile_gates(base.spec, gates), base.spec) - 0.3) <= TOLERANCE
    assert metrics["removed"] == pytest.approx(0.3, abs=TOLERANCE)
    assert metrics["phases"].keys() == {"dense", "gates", "recovery"}
    assert {"step", "loss", "goal_mlp", "closed_mlp"} <= metrics["log"]["gates"][0].keys()


def test_masked_and_converted_models_score_what_training_says(
    trained: TrainOptions, tmp_path: Path
) -> None:
    base, out = trained.out / "base", tmp_path / "pruned"
    held_out = write_examples(tmp_path / "eval.jsonl", 60, seed=1)
    convert(ConvertOptions(str(base), out, trained.out, to=("hf", "onnx")))
    masked = evaluate(EvalOptions(str(base), held_out, trained.out, seq_len=24))
    assert masked.engine.startswith("torch")
    for engine in ("torch", "onnx"):
        converted = evaluate(EvalOptions(str(out), held_out, engine=engine, seq_len=24))
        assert converted.engine.startswith(engine) and converted.num_samples == 60
        assert converted.scores == masked.scores
    assert masked.scores["accuracy"].value > 0.9


def test_head_with_a_norm_is_trained_and_converted(data: Path, tmp_path: Path) -> None:
    base, out = write_model(tmp_path / "modernbert", "modernbert"), tmp_path / "pruned"
    options = options_of(base, data, tmp_path / "gates", method=FISHER, dense_steps=DENSE_STEPS)
    train(options)
    metrics = metrics_of(options.out)
    assert accuracy(metrics, "dense") > 0.9
    assert accuracy(metrics, "recovered") > 0.9
    head = {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}
    assert head <= Gates.read(options.out).deltas.keys()
    convert(ConvertOptions(str(options.out / "base"), out, options.out, to=("hf", "onnx")))
    result = verify(VerifyOptions(str(options.out / "base"), str(out), options.out, "onnx"))
    assert result.passed and result.tensors_equal, result.difference


@pytest.mark.parametrize("method", [GATES, FISHER, WANDA, MAGNITUDE, RANDOM])
@pytest.mark.parametrize("gates", ["coupled", "row-col"])
def test_every_method_ends_at_the_target(
    method: str, gates: str, trained: TrainOptions, data: Path, tmp_path: Path
) -> None:
    options = options_of(
        trained.out / "base", data, tmp_path / "gates", method=method, gates=gates, steps=8
    )
    train(options)
    metrics, base = metrics_of(options.out), Checkpoint.open(options.base)
    found = Gates.read(options.out)
    assert removed(compile_gates(base.spec, found), base.spec) == metrics["removed"]
    assert abs(metrics["removed"] - 0.3) <= TOLERANCE
    if method != GATES:
        assert {value for values in found.values.values() for value in values} == {0.0, 1.0}
        assert metrics["phases"]["recovery"]["steps"] == 8
    else:
        assert metrics["phases"]["recovery"]["steps"] == 4
    assert not (options.out / "base").exists()
    assert accuracy(metrics, "dense") == accuracy(metrics_of(trained.out), "dense")


def test_dense_removes_nothing_and_takes_the_same_steps(
    trained: TrainOptions, data: Path, tmp_path: Path
) -> None:
    options = options_of(trained.out / "base", data, tmp_path / "gates", method=DENSE, steps=8)
    train(options)
    metrics = metrics_of(options.out)
    assert metrics["removed"] == 0
    assert metrics["phases"] == {"recovery": metrics["phases"]["recovery"]}
    assert accuracy(metrics, "masked") == accuracy(metrics, "dense")
    convert(ConvertOptions(options.base, tmp_path / "out", options.out))
    assert Checkpoint.open(tmp_path / "out").config["model_type"] == "bert"


@pytest.mark.parametrize("recovery", ["lora", "bias", "full", "head", "none"])
def test_a_recovery_changes_what_it_says(
    recovery: str, trained: TrainOptions, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": FISHER, "no_refit": True, "recovery": recovery}
    options = options_of(trained.out / "base", data, tmp_path / "gates", steps=4, **settings)
    train(options)
    spec = Checkpoint.open(options.base).spec
    changed = Gates.read(options.out).deltas.keys()
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"}
    head.add("bert.pooler.dense.bias")
    linears = spec.module_names()
    expected = {
        "lora": {f"{name}.weight" for name in linears} | head,
        "bias": {f"{name}.bias" for name in linears} | head,
        "full": {
            name
            for name in spec.tensor_shapes()
            if "embeddings." not in name or "LayerNorm" in name
        },
        "head": head,
        "none": set(),
    }
    assert changed == expected[recovery]
    trained_parameters = metrics_of(options.out)["phases"].get("recovery", {})
    shapes = spec.tensor_shapes()
    if recovery in ("bias", "full", "head"):
        count = sum(int(np.prod(shapes[name])) for name in changed)
        assert trained_parameters["trained_parameters"] == count


def test_lora_trains_as_many_parameters_as_the_overview_says(
    trained: TrainOptions, data: Path, tmp_path: Path
) -> None:
    from sgate_serve.training.phases.tuning import Tuning, tuned

    options = options_of(trained.out / "base", data, tmp_path / "gates", dry_run=True)
    phases = train(options).metrics["phases"]
    assert not options.out.exists() and not list(tmp_path.iterdir())
    model = AutoModelForSequenceClassification.from_pretrained(options.base)
    with tuned(model, Checkpoint.open(options.base).spec, Tuning("lora", 2, 0)):
        assert phases["recovery"]["trained_parameters"] == sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )


def test_regression_scores_numbers(base: Path, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "train.csv.jsonl", 120, labels=(0.0, 2.5))
    options = options_of(base, data, tmp_path / "gates", method=FISHER, dense_steps=DENSE_STEPS)
    train(options)
    scores = metrics_of(options.out)["scores"]["recovered"]
    assert scores.keys() == {"pearson", "spearman", "mse"}
    assert scores["pearson"]["value"] > 0.5 and scores["mse"]["value"] < 2
    assert Checkpoint.open(options.out / "base").spec.num_labels == 1


@pytest.mark.parametrize("kind", [0, 1], ids=["own-head", "tied"])
def test_a_decoder_becomes_a_classifier(kind: int, data: Path, tmp_path: Path) -> None:
    base = write_model(tmp_path / "llama", "llama", kind)
    options = options_of(base, data, tmp_path / "gates", dense_steps=DENSE_STEPS, distill=0.5)
    train(options)
    metrics = metrics_of(options.out)
    assert accuracy(metrics, "recovered") > 0.8
    check_base_config(base, options.out / "base")
    again = options_of(options.out / "base", data, tmp_path / "again", dry_run=True)
    assert train(again).metrics["phases"]["recovery"] == metrics["phases"]["recovery"]
    convert(ConvertOptions(str(options.out / "base"), tmp_path / "out", options.out))
    held_out = write_examples(tmp_path / "eval.jsonl", 40, seed=1)
    masked = evaluate(EvalOptions(str(options.out / "base"), held_out, options.out))
    assert evaluate(EvalOptions(str(tmp_path / "out"), held_out)).scores == masked.scores


@pytest.mark.parametrize(
    "changes",
    [
        {"relaxation": "hard-concrete", "gates_with": "none"},
        {"gates_with": "lora", "gates": "row-col"},
        {"gates_with": "bias", "gates": "row-col", "kurtosis": True},
        {"gate_block": 4},
        {"gradient_checkpointing": True, "gradient_accumulation": 2, "batch_size": 4},
        {"precision": "bf16"},
    ],
    ids=["hard-concrete", "row-col-lora", "row-col-bias", "blocks", "checkpointing", "bf16"],
)
def test_variants_train_to_the_target(
    changes: dict[str, Any], trained: TrainOptions, data: Path, tmp_path: Path
) -> None:
    options = options_of(trained.out / "base", data, tmp_path / "gates", **changes)
    train(options)
    metrics, base = metrics_of(options.out), Checkpoint.open(options.base)
    assert abs(metrics["removed"] - 0.3) <= TOLERANCE
    assert accuracy(metrics, "recovered") > 0.8
    gates = Gates.read(options.out)
    if changes.get("gate_block") == 4:
        plan = compile_gates(base.spec, gates)
        assert all(len(layer.mlp_units) % 4 == 0 for layer in plan.layers)
    convert(ConvertOptions(options.base, tmp_path / "out", options.out))
    held_out = write_examples(tmp_path / "eval.jsonl", 40, seed=1)
    masked = evaluate(EvalOptions(options.base, held_out, options.out))
    assert evaluate(EvalOptions(str(tmp_path / "out"), held_out)).scores == masked.scores


def test_a_loss_that_is_no_number_stops_the_run(base: Path, data: Path, tmp_path: Path) -> None:
    broken = write_model(tmp_path / "bert")
    model = AutoModel.from_pretrained(broken)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias.fill_(float("nan"))
    model.save_pretrained(broken)
    options = options_of(broken, data, tmp_path / "gates", dense_steps=4)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1: lower --learning-rate or"):
        train(options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"holds no records; give a file with at least one example"),
        (['{"text": "a", "label": "x"}'], r"has a single example; give more, or use --eval-data"),
        (['{"text": "a", "label": "x"}'] * 4, r"all labels are 'x'; give at least two classes"),
        (['{"text": "a"}'] * 4, r"line 1: no `label`; each record needs a class"),
        (['{"label": "x"}'] * 4, r"line 1: no string `text`; each record needs one"),
        (['{"text": "a", "label": -1}', '{"text": "a", "label": 1}'] * 3, r"label -1 is negative"),
        (['{"text": "a", "label": "x"}', '{"text": "a", "label": 1}'] * 3, "some labels are names"),
        (["not json"], r"line 1: not JSON"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused(
    base: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(lines))
    with pytest.raises(TrainingError, match=message):
        train(options_of(base, data, tmp_path / "gates"))
    assert not (tmp_path / "gates.work").exists()


def test_a_label_without_a_place_is_refused(trained: TrainOptions, tmp_path: Path) -> None:
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text('{"text": "a", "label": "dog"}')
    options = options_of(trained.out / "base", trained.data, tmp_path / "g", eval_data=(held_out,))
    message = r"line 1: label 'dog' is not one of the 2 classes \(cat, gate\); correct it, or add"
    with pytest.raises(TrainingError, match=message):
        train(options)


def test_a_family_without_classifiers_is_refused(data: Path, tmp_path: Path) -> None:
    build(ZOO["granite"][0], seed=0).save_pretrained(tmp_path / "granite")
    options = options_of(tmp_path / "granite", data, tmp_path / "gates")
    with pytest.raises(TrainingError, match="family granite, of which transformers has no class"):
        train(options)


def test_a_text_model_is_no_causal_lm(base: Path, data: Path, tmp_path: Path) -> None:
    options = options_of(base, data, tmp_path / "gates", task="causal-lm")
    with pytest.raises(TrainingError, match="is a BertModel: give a causal LM, or use --task cl"):
        train(options)


def test_runs_repeat(trained: TrainOptions, base: Path, data: Path, tmp_path: Path) -> None:
    again = options_of(base, data, tmp_path / "gates", dense_steps=DENSE_STEPS)
    train(again)
    first, second = Gates.read(trained.out), Gates.read(again.out)
    for key, values in first.values.items():
        np.testing.assert_array_equal(second.values[key], values)
    assert metrics_of(again.out)["scores"] == metrics_of(trained.out)["scores"]


def test_batches_are_not_padded_with_negative_ids(base: Path) -> None:
    model = Checkpoint.open(base)
    for ids, expected in (((-1, 5), 5), ((-1, -1), 0), ((3, 5), 3)):
        config = dict(zip(("pad_token_id", "eos_token_id"), ids, strict=True))
        assert pad_token(replace(model, config={**model.config, **config})) == expected
