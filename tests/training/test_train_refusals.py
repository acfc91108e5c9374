"""Training runs that are refused before any work, with the remedy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.convert import ConvertOptions, convert
from sgate_serve.errors import CheckpointError, SgateError, TrainingError
from sgate_serve.training import TrainOptions, train
from sgate_serve.training.run_dir import run_dir_of
from sgate_serve.training.train_options import ROW_COL
from tests.training.small_run import small_run


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    return small_run(tmp_path, target=0.3, method="gates", steps=4, no_control=True)


def test_an_out_folder_that_is_not_empty_is_refused(options: TrainOptions) -> None:
    options.out.mkdir()
    (options.out / "note").write_text("mine")
    with pytest.raises(TrainingError, match="gates is not empty; give a new folder"):
        train(options)
    assert not run_dir_of(options.out).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tagging"}, "--task tagging: this release supports causal-lm, classification"),
        (
            {"method": "dense", "no_control": True},
            "--no-control: --method dense is its own control; drop one",
        ),
        (
            {"recovery": "none", "no_control": True},
            "--no-control: without recovery there is no control; drop it",
        ),
        (
            {"eval_data": (Path("a.txt"), Path("b/man.txt"), Path("c/man.jsonl"))},
            "--eval-data b/man.txt and c/man.jsonl would both be reported as man; rename or drop",
        ),
        ({"precision": "fp16"}, "--precision fp16: this release supports fp32, bf16"),
        ({"method": "taylor"}, "--method taylor: this release supports gates, fisher, reap, wanda"),
        ({"relaxation": "stg"}, "--relaxation stg: this release supports straight-through, gau"),
        ({"gates_with": "full"}, "--gates-with full: this release supports none, bias, lora"),
        ({"method": "fisher", "kurtosis": True}, "--kurtosis is for trained gates: add --m"),
        ({"kurtosis": True}, "--kurtosis is for row-col gates: add --gates row-col, or drop it"),
        (
            {"balance": "joint", "method": "wanda"},
            "--balance joint compares Fisher scores of coupled",
        ),
        ({"balance": "fair"}, "--balance fair: this release supports joint, even"),
        (
            {"gates": ROW_COL, "gate_block": 8},
            "--gate-block is for coupled gates: drop it, or drop",
        ),
        ({"recovery": "head"}, "--recovery head trains a classifier's head; a causal LM has none"),
        ({"distill": 1.5}, r"--distill 1\.5: must lie between 0 and 1"),
        ({"dense_steps": -1}, "--dense-steps -1: give a whole number of at least 0"),
        ({"gates": "rows"}, "--gates rows: this release supports coupled, experts, row-col"),
        ({"gates": ROW_COL, "target": 0.999}, r"0\.999: the nearest .* 4 rows and 4 columns; use"),
        ({"recovery": "adapter"}, "--recovery adapter: this release supports lora, bias, full"),
        ({"target": 0.0}, r"--target 0\.0: give the fraction of block weights to remove, above"),
        ({"target": 1.0}, r"--target 1\.0: give the fraction"),
        ({"target": 30}, r"--target 30: give the fraction .* below 1; did you mean 0\.3\?"),
        ({"method": "fischer"}, "--method fischer: this release supports .*; did you mean fisher"),
        ({"gate_share": 50.0}, r"must lie between 0 and 1; did you mean 0\.5\?"),
        ({"label_column": "stars"}, "--label-column is for --task classification: text alone"),
        (
            {"text_column": "body", "data": Path("a.txt")},
            "--text-column is for .jsonl, .csv and datasets; .txt has none",
        ),
        ({"report_to": "wandbe"}, "--report-to wandbe is not installed here, or is not a logger"),
        ({"target": 0.99}, r"--target 0\.99: the nearest that this model can reach is 0\.\d+"),
        ({"gate_share": 1.0}, r"--gate-share 1\.0: must lie between 0 and 1"),
        ({"steps": 1}, "--steps 1: give a whole number of at least 2"),
        ({"seq_len": 1}, "--seq-len 1: give a whole number of at least 2"),
        ({"seq_len": 512}, "--seq-len 512: .* has 256 positions"),
        ({"batch_size": 0}, "--batch-size 0: give a whole number of at least 1"),
        ({"lora_rank": 0}, "--lora-rank 0: give"),
        ({"eval_blocks": 0}, "--eval-blocks 0: give"),
        ({"save_steps": 0}, "--save-steps 0: give"),
        ({"learning_rate": 0.0}, r"--learning-rate 0\.0: must be positive"),
        ({"gate_learning_rate": -1.0}, r"--gate-learning-rate -1\.0: must be positive"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    options: TrainOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(replace(options, **changes))
    assert not run_dir_of(options.out).exists()


def test_a_pruned_base_is_refused(options: TrainOptions) -> None:
    base = Path(options.base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "sgate", "sgate": {"version": 1, "family": "llama"}}
    folder = options.out.with_name("pruned")
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="is already pruned; train on its"):
        train(replace(options, base=str(folder)))


def test_an_int8_base_is_refused(options: TrainOptions) -> None:
    folder = options.out.with_name("int8")
    convert(ConvertOptions(options.base, folder, precision="int8"))
    with pytest.raises(CheckpointError, match="is quantized to int8; give the unquantized"):
        train(replace(options, base=str(folder)))


def test_missing_packages_are_named_with_their_remedy(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgate_serve.environment.find_spec", lambda name: name != "peft" or None)
    with pytest.raises(TrainingError, match=r'needs peft, .* run: .*install.*\[train\]"$'):
        train(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.2}, "--target has no effect on a given mask"),
        ({"method": "wanda"}, "--method has no effect on a given mask"),
        ({"dense_steps": 2}, "--dense-steps has no effect"),
        ({"mask": Path("nowhere")}, "no such file or folder"),
        ({}, "every gate is open"),
    ],
)
def test_a_given_mask_is_refused_before_any_work(
    options: TrainOptions, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    dense = replace(options, method="dense", recovery="none", no_control=False, out=tmp_path / "x")
    train(dense)
    given = replace(options, mask=dense.out, target=None, method="fisher")
    with pytest.raises(SgateError, match=message):
        train(replace(given, **changes))
    assert not run_dir_of(options.out).exists()
