"""The quality table at a tiny size: cells are trained, converted and measured once, and resumed."""

import json
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality_cells import Cell
from benchmarks.quality_tables import equality_sentence, quality_rows
from tests.training.labelled_text import write_examples, write_model

CELLS = [
    Cell("dense", {"method": "dense"}, seeds=(0, 1)),
    Cell("fisher 30%", {"method": "fisher"}, seeds=(0, 1)),
]


def test_a_table_is_trained_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = write_model(tmp_path / "bert"), tmp_path / "run" / "tasks" / "packages"
    data.mkdir(parents=True)
    write_examples(data / "train.jsonl", 60)
    write_examples(data / "eval.jsonl", 20, seed=1)
    monkeypatch.setattr(quality, "cells", lambda: iter(CELLS))
    options = quality.QualityOptions(
        base=str(base),
        dir=str(tmp_path / "run"),
        start_steps=4,
        steps=4,
        batch_size=4,
        seq_len=16,
        seeds="0,1",
        rounds=2,
    )
    record = quality.run(options)
    assert [(cell["cell"], cell["seed"]) for cell in record["cells"]] == [
        ("dense", 0),
        ("fisher 30%", 0),
        ("dense", 1),
        ("fisher 30%", 1),
    ]
    assert str(tmp_path) not in json.dumps(record)
    pruned = record["cells"][1]
    assert pruned["converted"].keys() == {"masked", "torch", "onnx"}
    assert pruned["converted"]["masked"] == pruned["converted"]["onnx"]
    assert pruned["scores"]["recovered"]["accuracy"]["value"] == pytest.approx(
        pruned["converted"]["masked"]["accuracy"]
    )
    assert record["summary"]["dense"]["seeds"] == [0, 1]
    rows = list(quality_rows(record, "accuracy"))
    assert len(rows) == 4 and "speed at batch 32" in rows[0]
    assert equality_sentence(record).endswith("0 on onnx (1 scored), 0 on torch (1 scored).")
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.json")}
    again = quality.run(options)
    assert again["cells"] == record["cells"]
    assert {file: file.stat().st_mtime_ns for file in done} == done
