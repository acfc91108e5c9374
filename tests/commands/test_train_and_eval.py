"""What `sgate train` and `sgate eval` print and refuse, from dry run to score."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sgate_serve import progress
from sgate_serve.commands.train import metric_lines
from tests.commands.running import run
from tests.training.labelled_text import write_examples, write_model


def test_columns_of_the_training_table_never_run_together() -> None:
    names = ("loss", "perplexity", "a_metric_with_a_long_name_indeed")
    values = [{"value": 123456789.125, "standard_error": error} for error in (9876.5, None, 0.5)]
    scores = dict(zip(names, values, strict=True))
    stages = {"dense": scores, "dense_trained": scores, "recovered": scores}
    lines = list(metric_lines(stages, {"man": stages, "essays": stages}))
    header, *rows = (re.split(r" {3,}", line) for line in lines)
    assert header == ["held out", *names, "perplexity man", "perplexity essays"]
    cells = ["123456789.1250 ± 9876.5000", "123456789.1250", "123456789.1250 ± 0.5000"]
    cells += ["123456789.1250"] * 2
    labels = ("dense", "dense, trained as long", "recovered")
    assert rows == [[label, *cells] for label in labels]
    assert len({len(line) for line in lines}) == 1


def test_train_says_what_it_would_do_and_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine, short activities leave no line, and none has two.
    monkeypatch.setattr(progress, "BRIEF_SECONDS", 1e9)
    monkeypatch.setattr(progress, "LOG_SECONDS", 1e9)
    monkeypatch.setattr(progress, "LONGEST_LOG_SECONDS", 1e9)
    model = write_model(tmp_path / "bert")
    data = write_examples(tmp_path / "train.jsonl", 60)
    held_out = write_examples(tmp_path / "eval.jsonl", 30, seed=1)
    elsewhere = write_examples(tmp_path / "else where.jsonl", 20, seed=2)
    words: list[str | Path] = ["train", model, "--task", "classification", "--data", data]
    words += ["--eval-data", held_out, "--eval-data", elsewhere, "--precision", "fp32"]
    words += ["--steps", "4", "--seq-len", "24", "--out", tmp_path / "gates"]
    status, out, _ = run(capsys, *words, "--dry-run")
    assert status == 0 and not (tmp_path / "gates").exists()
    assert "gates      coupled: 192 of mlp, 8 of attention; target 30%" in out
    assert "dense      4 steps of 8, " in out and "data       60 samples, 30 held out, 20 of" in out
    assert "control    4 steps of 8, " in out and "precision  fp32" in out
    status, out, err = run(capsys, *words)
    assert status == 0
    assert (tmp_path / "gates" / "training.png").stat().st_size > 10_000
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["held"][2:] == ["accuracy", "macro_f1", "matthews", "accuracy", "else", "where"]
    # One line for each phase, and none from the libraries.
    shown = [re.sub(r" in [\d.]+ (s|min)", "", line) for line in err.splitlines()]
    assert [re.sub(r"loss \d.*tokens/s", "loss and speed", line) for line in shown] == [
        "dense: 4 steps, loss and speed",
        "control: 4 steps, loss and speed",
        "measuring the trained dense model: 4 batches",
        "measuring the trained dense model on else where: 3 batches",
        "measuring the dense model: 4 batches",
        "measuring the dense model on else where: 3 batches",
        "scoring (fisher): 8 batches",
        "refitting to what stays: 2 layers",
        "measuring the masked model: 4 batches",
        "measuring the masked model on else where: 3 batches",
        "recovery: 4 steps, loss and speed",
        "measuring the recovered model: 4 batches",
        "measuring the recovered model on else where: 3 batches",
    ]
    assert {"dense", "dense,", "masked", "recovered"} <= rows.keys()
    assert "computed in fp32; at most " in out
    base = tmp_path / "gates" / "base"
    assert f"next: sgate convert {base} --gates {tmp_path / 'gates'} --to hf,onnx --out" in out
    converted = tmp_path / "pruned"
    gates = ("--gates", tmp_path / "gates")
    assert run(capsys, "convert", base, *gates, "--to", "hf,onnx", "--out", converted)[0] == 0
    status, out, _ = run(capsys, "eval", converted, "--data", held_out, "--json")
    record = json.loads(out)
    assert status == 0 and record["engine"].startswith("onnx") and record["num_samples"] == 30
    masked = json.loads(run(capsys, "eval", base, *gates, "--data", held_out, "--json")[1])
    assert masked["scores"] == record["scores"]
    assert f"{record['scores']['accuracy']['value']:.4f}" == rows["recovered"][1]
    status, out, _ = run(capsys, "eval", converted, "--data", held_out, "--engine", "torch")
    assert status == 0 and "accuracy" in out and "30 samples" in out


def test_eval_refuses_what_cannot_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = write_model(tmp_path / "bert"), write_examples(tmp_path / "eval.jsonl", 4)
    status, _, err = run(capsys, "eval", model, "--data", data)
    assert status == 2 and "is a BertModel, without a head to score; give a causal LM" in err
    (tmp_path / "gates").mkdir()
    causal = write_model(tmp_path / "llama", "llama")
    status, _, err = run(capsys, "eval", causal, "--data", data, "--engine", "tpu")
    assert status == 2 and "tpu" in err


def test_eval_measures_the_perplexity_of_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "llama", "llama")
    data = write_examples(tmp_path / "eval.jsonl", 60)
    words = ("eval", model, "--data", data, "--seq-len", "16", "--json")
    records = [json.loads(run(capsys, *words, "--engine", e)[1]) for e in ("torch", "onnx")]
    values = [record["scores"]["perplexity"]["value"] for record in records]
    assert values[0] == pytest.approx(values[1], rel=1e-4) and 200 < values[0] < 800
    record = json.loads(run(capsys, *words, "--engine", "onnx", "--precision", "int4")[1])
    assert record["precision"] == "int4"
    status, _, err = run(capsys, *words, "--engine", "torch", "--precision", "int4")
    assert status == 2 and "--precision int4: engine torch computes as the folder is stored" in err
    rounded = tmp_path / "int8"
    assert run(capsys, "convert", model, "--precision", "int8", "--out", rounded)[0] == 0
    record = json.loads(run(capsys, "eval", rounded, *words[2:], "--engine", "onnx")[1])
    assert record["precision"] == "int8"
    assert record["scores"]["perplexity"]["value"] == pytest.approx(values[0], rel=0.05)


def test_eval_on_onnx_needs_no_torch(tmp_path: Path) -> None:
    model = write_model(tmp_path / "llama", "llama")
    data = write_examples(tmp_path / "eval.jsonl", 20)
    code = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name in ("torch", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from sgate_serve.cli import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["eval", str(model), "--data", str(data), "--seq-len", "16", "--engine", "onnx"]
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "perplexity" in found.stdout


def test_columns_with_other_names_are_trained_on_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "bert", kind=1)
    lines = write_examples(tmp_path / "data.jsonl", 40, labels=(0, 1)).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    table = "\n".join(["stars,body", *(f"{row['label']},{row['text']}" for row in rows)])
    (tmp_path / "data.csv").write_text(table, encoding="utf-8")
    data: list[str | Path] = ["--data", tmp_path / "data.csv", "--seq-len", "24"]
    train = [
        "train",
        model,
        "--task",
        "classification",
        *data,
        "--dry-run",
        "--out",
        tmp_path / "g",
    ]
    status, _, err = run(capsys, *train)
    assert (
        status == 2
        and "each record needs a class or, for a regression, a float, and its columns are stars"
        in err
    )
    columns = ("--text-column", "body", "--label-column", "stars")
    status, out, err = run(capsys, *train, *columns)
    assert status == 0 and "36 samples, 4 held out" in out, err
    status, out, err = run(capsys, "eval", model, *data, *columns, "--engine", "torch")
    assert status == 0, err
    head, titles, *scores = out.splitlines()
    assert head.endswith("n = 40 samples") and titles.split() == ["score", "95%", "interval"]
    assert all(re.fullmatch(r"\w+ +-?\d\.\d{4} +\S+ to \S+", line) for line in scores)
    causal = write_model(tmp_path / "llama", "llama")
    words = ("eval", causal, "--data", tmp_path / "data.csv", *columns)
    status, _, err = run(capsys, *words)
    assert status == 2 and "is a causal LM, scored on text alone; drop --label-column" in err
