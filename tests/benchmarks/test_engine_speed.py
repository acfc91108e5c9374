"""The benchmark of engines: our own, without the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.engine_speed import EngineOptions, run
from benchmarks.engine_tables import engine_rows

TINY = EngineOptions(
    hidden=128,
    mlp=256,
    layers=1,
    heads=2,
    kv_heads=1,
    vocab_size=512,
    rounds=1,
    decode_steps=2,
    batches="1,3",
    prompts="8,16",
    vllm=0,
    groups="int8",
)


def test_engines_are_measured_once_in_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGATE_CACHE", str(tmp_path / "cache"))
    options = replace(TINY, dir=str(tmp_path / "run"))
    record = run(options)
    phases = record["results"]["int8"]
    assert list(phases) == ["decode_batch_1", "decode_batch_3", "prefill_8", "prefill_16"]
    names = ["ours int4 dense", "ours int8 dense", "ours int8 p30"]
    assert all(list(phase) == names for phase in phases.values())
    seconds = phases["decode_batch_3"]["ours int8 p30"]["seconds"]
    assert len(seconds) == 2 and min(seconds) > 0
    assert str(tmp_path) not in json.dumps(record)
    assert [row.split(" | ")[0] for row in engine_rows(record)][2:] == [
        "| ours int8 dense",
        "| 30% removed",
    ]
    assert run(options)["results"] == record["results"]
    with pytest.raises(SystemExit, match="was started with other options; give another --dir"):
        run(replace(options, rounds=2))
